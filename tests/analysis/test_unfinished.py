"""Studies with runs that failed or are still to come: what is said of them, and what is not."""

import pandas as pd
import pytest

from spectrum import stats
from spectrum.analysis.answer import answer
from spectrum.analysis.report import judge
from spectrum.analysis.sentences import sentence, verdict_in_words
from tests.analysis.test_plots import results
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
    gain = table["segments"].map({1: 0.05}).fillna(-0.11) + 0.001 * table["seed"]
    table["test_accuracy"] = 0.8 + 0.01 * table["seed"] + gain * table["activation"].eq("relu")
    points = [
        {"id": id, "point": {"segments": s, "activation": a, "seed": seed}, "match": "none"}
        for id, s, a, seed in table[["id", "segments", "activation", "seed"]].itertuples(index=False)
    ]
    return table, plan_of({"study": "made-up", "points": points, "varied": ["segments", "activation"], **more})


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
