"""Studies with runs that failed or are still to come: what is said of them, and what is not."""

import numpy as np
import pandas as pd
import pytest

from spectrum import plots, stats
from spectrum.analysis.answer import answer, caveats, not_prespecified, worst_mismatches
from spectrum.analysis.export import runs_table
from spectrum.analysis.page import page_of
from spectrum.analysis.plots.frame import broken, inches_of_text
from spectrum.analysis.report import draw_figures, judge
from spectrum.analysis.sentences import pp, sentence, verdict_in_words
from spectrum.analysis.summary import matrix, summary_table
from tests.analysis.test_plots import results, said
from tests.plans import plan_of

NO_SEED = "no seed has a run of each configuration"


def without_a_whole_seed(table, rows=None):
    """The table in which, among some rows, the first segments fail at seed 0 and the second at seed 1."""
    rows = pd.Series(True, index=table.index) if rows is None else rows
    lost = table["segments"].eq(1) & table["seed"].eq(0) | table["segments"].eq(4) & table["seed"].eq(1)
    return table.assign(test_accuracy=table["test_accuracy"].where(~(lost & rows)))


def test_where_no_seed_is_whole_nothing_is_excluded_from_the_optima_and_the_answer_says_why():
    table = without_a_whole_seed(results(segments=[1, 4]))
    found = stats.optimum(table)
    assert found["label"].tolist() == ["1", "4"]
    assert found["n"].tolist() == [0, 0]
    assert found["in_set"].all()
    assert not found["best"].any()
    assert answer(table, pd.DataFrame())[1] == f"Possible optima are not known: {NO_SEED}."
    unpaired = results(segments=[1, 4])
    unpaired = unpaired[unpaired["segments"].eq(1) == unpaired["seed"].eq(0)]
    assert answer(unpaired, pd.DataFrame())[1] == f"Possible optima are not known: {NO_SEED}."


def test_a_curve_without_a_whole_seed_is_said_to_be_unknown_and_the_others_are_listed():
    table = results(segments=[1, 4], batch_size=[32, 64])
    table = without_a_whole_seed(table, table["batch_size"].eq(64))
    said = answer(table, pd.DataFrame())[1]
    assert said == (
        f"Possible optima (95% set of segments): batch size 32: 1, 4; batch size 64: not known, since {NO_SEED}."
    )
    assert stats.trend(table)["batch_size"].tolist() == [32]


RELU = [{"activation": "relu"}, {"activation": "none"}]


def study(segments=(1, 4), seeds=(0, 1, 2), **more):
    """A study of two activations whose verdict turns with the segments, and its plan."""
    table = results(segments=list(segments), activation=["none", "relu"], seed=list(seeds))
    table = table.assign(provenance=[{"torch": "2"}] * len(table), reason=None)
    gain = table["segments"].map({1: 0.05}).fillna(-0.11) + 0.001 * table["seed"]
    table["test_accuracy"] = 0.8 + 0.01 * table["seed"] + gain * table["activation"].eq("relu")
    points = [
        {"id": id, "point": {"segments": s, "activation": a, "seed": seed}, "match": "none"}
        for id, s, a, seed in table[["id", "segments", "activation", "seed"]].itertuples(index=False)
    ]
    return table, plan_of(
        {
            "study": "made-up",
            "file": "made-up.toml",
            "question": "?",
            "hash": "0" * 16,
            "points": points,
            "varied": ["segments", "activation"],
            **more,
        }
    )


def test_a_comparison_is_judged_only_once_all_its_planned_runs_have_ended():
    table, plan = study(contrasts=[{"name": "activation", "between": RELU}])
    interim = table[table["segments"].eq(1)]
    assert stats.contrasts(interim, plan.contrasts)["verdict"].tolist() == ["higher"]  # of another question
    judged = judge(interim, plan)
    assert (judged["n"][0], judged["verdict"][0], judged["left_out"][0]) == (0, "not complete", ())
    assert verdict_in_words(judged.iloc[0]) == "not complete"
    said = "ReLU vs no activation, averaged over 2 numbers of segments: "
    assert sentence(judged.iloc[0]) == f"{said}not complete, 6 of 12 runs have ended."
    assert answer(interim, judged)[0] == f"{said}not complete, 6 of 12 runs have ended."
    assert judge(table, plan)["verdict"].tolist() == ["lower"]
    failed = table.assign(test_accuracy=table["test_accuracy"].where(table["seed"].ne(0)))
    assert judge(failed, plan)["left_out"].tolist() == [(0,)]  # what failed has ended


def test_comparisons_of_which_all_runs_are_there_are_judged_beside_others_that_are_not_complete():
    asked = [
        {"name": "where 1", "between": [{"segments": 1, **side} for side in RELU]},
        {"name": "interaction", "between": RELU, "across": [{"segments": 1}, {"segments": 4}]},
        {"name": "slope", "between": RELU, "across": "segments"},
    ]
    table, plan = study(contrasts=asked)
    judged = judge(table[table["segments"].eq(1)], plan)
    assert judged["verdict"].tolist() == ["higher", "not complete", "not complete"]
    assert "1 shows a difference and 2 are not complete" in answer(table, judged)[1]


def test_a_comparison_without_a_run_counts_in_the_family():
    table, _ = study()
    alone = stats.contrast(table, RELU).p
    absent = {"name": "absent", "between": [{"segments": 8}, {"segments": 1}]}
    judged = stats.contrasts(table, [{"name": "activation", "between": RELU}, absent, {**absent, "margin": 0.1}])
    assert judged["p"][0] == pytest.approx(3 * alone)
    assert judged["p"][1:].isna().all()
    assert judged["p_equivalent"].isna().all()


def test_a_configuration_with_fewer_seeds_than_the_others_is_counted():
    table, plan = study()
    lost = table["segments"].eq(1) & table["activation"].eq("relu") & table["seed"].gt(0)
    said = caveats(table.assign(test_accuracy=table["test_accuracy"].where(~lost)), plan, pd.DataFrame())
    assert said[0] == "1 of 4 configurations has one seed: no interval."
    assert said[1].startswith("The 3 seeds of the others are few: ")
    lost &= table["seed"].gt(1)
    said = caveats(table.assign(test_accuracy=table["test_accuracy"].where(~lost)), plan, pd.DataFrame())
    assert said[0].startswith("2 to 3 seeds per configuration are few: ")
    one = caveats(table[table["seed"].eq(0)], plan, pd.DataFrame())
    assert one[1].startswith("One seed per configuration has no interval")


def test_all_that_share_the_highest_mean_are_named():
    table, _ = study(segments=(1, 2, 4))
    for share, words in (
        (table["segments"].notna(), "All 6 configurations have the mean accuracy 90.00%."),
        (table["segments"].ne(1), "Highest mean accuracy: 90.00%, of 4 of the 6 configurations."),
        (table["segments"].eq(2), "Highest mean accuracy: 2 segments, no activation; 2 segments, ReLU, each 90.00%."),
    ):
        tied = table.assign(test_accuracy=0.8 + 0.1 * share)
        assert answer(tied, pd.DataFrame())[0] == words
        columns = zip(*([cell.highest for cell in cells] for _, cells in matrix(tied).rows), strict=True)
        bold = [share[table["segments"].eq(s)].all() for s in (1, 2, 4)]
        assert [list(column) for column in columns] == [bold, bold]


def test_equal_accuracies_have_no_interval():
    table, _ = study()
    mean, low, high = stats.t_interval([0.1003] * 3)
    assert (mean, np.isnan(low), np.isnan(high)) == (pytest.approx(0.1003), True, True)
    equal = table.assign(test_accuracy=0.1003)
    assert set(summary_table(equal)["accuracy"]) == {"10.03"}
    assert np.isnan(stats.bootstrap_interval([0.1] * 20)[1])


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.00004, "0.004"), (-0.00004, "−0.004"), (0.0000001, "0.00001"), (0.05, "5.00"), (0, "0.00"), (1e-17, "0.00"),
     (0.0000499, "0.005"), (0.00005001, "0.01")],
)  # fmt: skip
def test_what_is_not_zero_is_not_said_to_be_zero(value, said):
    assert pp(value) == said
    assert pp(value, sign=True).removeprefix("+") == said


def test_a_configuration_whose_runs_all_failed_is_named():
    table, plan = study()
    lost = table["segments"].eq(1) & table["activation"].eq("relu")
    failed = table.assign(status=table["status"].mask(lost, "failed"), test_accuracy=table["test_accuracy"].mask(lost))
    missing = "Every run of these configurations failed, so tables and figures lack them: 1 segment, ReLU."
    assert missing in caveats(failed, plan, pd.DataFrame())
    assert not any("lack them" in one for one in caveats(table, plan, pd.DataFrame()))


def test_a_study_without_comparisons_is_told_so_and_how_to_name_one():
    table, plan = study()
    (said,) = not_prespecified(table, plan)
    assert said.startswith("No comparison was prespecified, so no difference is tested: name one under [[contrasts]]")
    assert not_prespecified(*study(contrasts=[{"name": "activation", "between": RELU}])) == []
    assert not_prespecified(table[table["segments"].eq(1) & table["activation"].eq("relu")], plan) == []


def test_accuracies_at_chance_are_a_caveat():
    table, plan = study()
    entry = {"dataset": "digits", "classes": ["0", "1"], "train_images": [50, 50], "test_images": [90, 10]}
    plan = plan_of(plan.entry() | {"images": [entry]})
    low = table.assign(test_accuracy=0.9)
    said = "No configuration is clearly above chance, 90.00% (the share of the most frequent class): "
    assert any(one.startswith(said) for one in caveats(low, plan, pd.DataFrame()))
    learned = low.assign(test_accuracy=low["test_accuracy"].mask(low["segments"].eq(1), 0.97))
    assert not any("above chance" in one for one in caveats(learned, plan, pd.DataFrame()))
    assert not any(
        "above chance" in one for one in caveats(low, plan_of(plan.entry() | {"images": []}), pd.DataFrame())
    )


def test_an_edge_of_the_sweep_says_which_side():
    table, plan = study()
    choices = [{"values": {"lr": lr}, "edges": ["lr"] * (lr != 0.1)} for lr in (0.05, 0.1, 0.2, 0.2)]
    tuned = plan_of(plan.entry() | {"tuning": {"grid": {"lr": [0.05, 0.1, 0.2]}, "choices": choices}})
    said = (
        "For 3 of 4 configurations the sweep chose a value at the edge of its grid (the smallest learning rate for 1, "
    )
    assert f"{said}the largest learning rate for 2); a better one may lie beyond." in caveats(
        table, tuned, pd.DataFrame()
    )


def test_a_run_that_meets_several_budgets_is_one_run():
    table, plan = study()
    both = pd.concat([table, table[table["segments"].eq(4)].assign(match="params")], ignore_index=True)
    points = [entry.entry() for entry in plan.runs]
    points += [{**entry, "match": "params"} for entry in points if entry["point"]["segments"] == 4]
    shared = plan_of(plan.entry() | {"points": points})
    assert len(both) == len(shared.runs) == 18
    assert shared.count == 12
    page = page_of(both, shared, summary_table(both), {}, pd.DataFrame())
    assert "12 of 12 runs finished" in page
    assert "All 12 runs ended, and all count." in page
    assert "<dd>12, each on the same images, batches and augmentation for one seed</dd>" in page
    assert "11 of 12 runs have finished" in caveats(both[both["id"].ne(table["id"][0])], shared, pd.DataFrame())[0]
    failed = both.assign(status=both["status"].where(both["id"].ne(table["id"].iloc[-1]), "failed"))
    assert "1 run failed and is left out." in caveats(failed, shared, pd.DataFrame())


def test_budgets_and_their_mismatches_are_those_of_the_plan():
    table, plan = study()
    points = [entry.entry() for entry in plan.runs]
    points += [{**entry, "id": f"p{entry['id']}", "match": "params", "mismatch": -0.0021} for entry in points]
    both = plan_of(plan.entry() | {"points": points, "budget": {"match": ["none", "params"]}})
    assert worst_mismatches(both) == {"params": "0.21%"}
    said = " ".join(caveats(table, both, pd.DataFrame()))
    assert "Where widths are matched, parameters and MACs vary" in said
    assert "No budget is matched" not in said
    assert "No budget is matched: parameters" in " ".join(caveats(table, plan, pd.DataFrame()))


def page_with(**options):
    """The page of a study in which some options have several values, one a seed."""
    table, plan = study(seeds=(0, 1), contrasts=[{"name": "activation", "between": RELU}])
    for entry in (points := [run.entry() for run in plan.runs]):
        entry["point"] |= {name: values[entry["point"]["segments"] != 1] for name, values in options.items()}
    said = plan_of(plan.entry() | {"points": points})
    return page_of(table, said, summary_table(table), {}, judge(table, said))


@pytest.mark.parametrize(
    ("options", "alike"),
    [
        ({}, ", each on the same images, batches and augmentation for one seed"),
        ({"batch_size": (32, 64)}, ", each on the same images and augmentation for one seed"),
        ({"flip": (True, False)}, ", each on the same images and batches for one seed"),
        ({"dataset": ("mnist", "digits")}, ""),
    ],
)
def test_only_what_all_runs_see_alike_is_said_to_be_the_same(options, alike):
    assert f"<dd>8{alike}</dd>" in page_with(**options)


def test_seeds_that_vary_the_teacher_vary_the_test_images():
    assert "Seeds vary the training, not the test images." in page_with()
    own = page_with(dataset=("gaussian",) * 2, teacher_segments=(1, 1), teacher_seed=("seed", "seed"))
    assert "Seeds vary the teacher, its images (test images too) and the training together." in own
    assert "not the test images" not in own


def test_validation_images_are_not_said_to_be_read_once():
    table, plan = study()
    seen = "on the test set, read once at the end of each run."
    assert seen in page_of(table, plan, summary_table(table), {}, pd.DataFrame())
    validated = table.assign(test_accuracy=None)
    page = page_of(validated, plan, summary_table(validated), {}, pd.DataFrame())
    assert "on validation images, which are read after every epoch." in page
    assert "read once" not in page


def test_a_study_whose_runs_all_failed_says_so_in_its_comparisons():
    table, plan = study(contrasts=[{"name": "activation", "between": RELU}])
    failed = table.assign(status="failed", test_accuracy=None, val_accuracy=None, reason="boom")
    page = page_of(failed, plan, summary_table(failed), {}, judge(failed, plan))
    assert "Not judged: every run has failed." in page
    assert "no run yet" not in page


def test_a_table_for_a_paper_says_what_failed_and_what_is_not_there():
    table, plan = study()
    failed = table.assign(
        status=["failed", *["done"] * 11], test_accuracy=table["test_accuracy"].where(table.index > 0)
    )
    assert runs_table(table, plan.count).caption.endswith("budget: width-matched.")
    assert runs_table(failed, plan.count).caption.endswith(" 1 of 12 runs failed and is left out.")
    assert runs_table(table.iloc[:6], plan.count).caption.endswith(" Not complete: 6 of 12 runs have ended.")


def test_one_epoch_is_no_learning_curve_and_one_split_no_spectrum():
    table, _ = study(segments=(1,))
    epochs = pd.DataFrame({"id": table["id"], "epoch": 1, "lr": 0.1, "val_accuracy": 0.5})
    figures = draw_figures(table, epochs)
    assert "learning" not in figures
    assert figures["spectrum"][0] == figures["spectrum"][1].texts[0].get_text() == "Accuracy of each configuration"
    assert "learning" in draw_figures(table, pd.concat([epochs, epochs.assign(epoch=2)]))
    assert draw_figures(study()[0], epochs)["spectrum"][0] == "Accuracy along the spectrum"


def test_open_marks_are_explained_where_there_are_any():
    table, _ = study()
    bare = table[table["segments"].eq(1)].assign(pointwise=False, id="b" + table["id"])
    for rows, is_said in ((table, False), (pd.concat([table, bare], ignore_index=True), True)):
        assert ("open: no 1×1" in said(plots.spectrum_curve(rows))) == is_said
    judged = stats.contrasts(pd.concat([table, bare], ignore_index=True), [{"name": "x", "between": RELU}])
    assert judged["where"].tolist() == ["averaged over 3 splits"]


def test_a_word_that_no_line_holds_is_broken():
    lines = broken("a " + "LO" * 40 + "NG name", 1.0, 8.0).splitlines()
    assert "".join(lines).replace(" ", "") == "a" + "LO" * 40 + "NGname"
    assert max(inches_of_text(line, 8.0) for line in lines) <= 1.0


def test_a_configuration_of_several_settings_is_one_thing():
    table, _ = study()
    sides = [{"segments": 1, "activation": "none"}, {"segments": 4, "activation": "relu"}]
    row = stats.contrasts(table, [{"name": "x", "between": sides}]).iloc[0]
    winner = row["side_a"] if row["mean"] > 0 else row["side_b"]
    assert f"{winner} is better by" in sentence(row)
    mixed = table.assign(teacher_segments=table["activation"].map({"relu": 2}).astype(object))
    mixed["dataset"] = mixed["activation"].map({"relu": "gaussian", "none": "digits"})
    sides = [{"dataset": "digits"}, {"dataset": "gaussian", "teacher_segments": 2}]
    row = stats.contrasts(mixed.drop(columns="activation"), [{"name": "x", "between": sides}]).iloc[0]
    assert row["side_a"] == "digits"
