"""The learning-rate sweep: the same grid everywhere, decided on validation images, final runs with other seeds."""

import json

import pytest

from spectrum import load_results, load_tuning, plots, run_study
from spectrum.design.run import RunConfig
from spectrum.design.study_file import parse_study
from spectrum.study.planning import CostedRun
from spectrum.study.store import StoreError, read_plan, read_rows
from spectrum.study.tuning import choose, confirmed, extended, sweep

TINY = {"dataset": "digits", "train_images": 100, "batch_size": 50, "epochs": 1, "width": 0.25}
GRID = {"lr": (0.05, 0.1, 0.2), "weight_decay": (0.0, 0.001)}


def planned(*segments, seeds=(0,)):
    runs = [RunConfig(**TINY, segments=count, seed=seed) for seed in seeds for count in segments]
    return [CostedRun(run, 1, 1, 1, (1,), run) for run in runs]


def rows_of(swept, accuracy):
    return {one.run.id: {"val_accuracy": accuracy(one.run)} for one in swept}


def test_every_network_gets_the_whole_grid_with_the_same_seeds_and_no_test_images():
    swept = sweep(planned(1, 4, seeds=(0, 1)), GRID, seeds=(10, 11))
    assert len(swept) == len({one.run.id for one in swept}) == 2 * 6 * 2
    for count in (1, 4):
        own = {(one.run.lr, one.run.weight_decay, one.run.seed) for one in swept if one.run.segments == count}
        assert own == {(lr, decay, seed) for lr in GRID["lr"] for decay in GRID["weight_decay"] for seed in (10, 11)}
    assert {one.run.scored_on for one in swept} == {"validation"}


def test_the_best_mean_over_seeds_is_chosen_and_of_equal_ones_the_smaller():
    runs = planned(1, 4)
    swept = sweep(runs, GRID, seeds=(10, 11))
    best = {1: 0.2, 4: 0.1}

    def accuracy(run):  # one lucky seed at another rate does not decide
        lucky = 0.06 if run.lr == 0.05 and run.seed == 10 else 0.0
        return 0.5 + lucky - abs(run.lr - best[run.segments])

    choices = choose(swept, GRID, rows_of(swept, accuracy))
    assert [choice.values for choice in choices] == [
        {"lr": 0.2, "weight_decay": 0.0},
        {"lr": 0.1, "weight_decay": 0.0},
    ]
    assert [(choice.low_edges, choice.high_edges) for choice in choices] == [
        (("weight_decay",), ("lr",)),
        (("weight_decay",), ()),
    ]
    final = confirmed(planned(1, 4, seeds=(0, 1)), choices)
    assert [(one.run.segments, one.run.lr, one.run.seed) for one in final] == [
        (1, 0.2, 0),
        (4, 0.1, 0),
        (1, 0.2, 1),
        (4, 0.1, 1),
    ]
    assert {one.run.scored_on for one in final} == {"test"}


def test_a_grid_grows_beyond_the_edges_that_are_best_anywhere():
    runs, grid = planned(1, 4), {"lr": (0.05, 0.1, 0.2)}
    swept = sweep(runs, grid, seeds=(10,))
    best = {1: 0.2, 4: 0.05}
    choices = choose(swept, grid, rows_of(swept, lambda p: -abs(p.lr - best[p.segments])))
    wider = extended(grid, choices, grid, most=1)
    assert wider == {"lr": (0.025, 0.05, 0.1, 0.2, 0.4)}
    assert extended(wider, choices, grid, most=1) == wider, "one at each edge was allowed"
    assert extended(grid, choices, grid, most=0) == grid
    inner = choose(swept, grid, rows_of(swept, lambda p: -abs(p.lr - 0.1)))
    assert extended(grid, inner, grid, most=1) == grid


def study(**said):
    return parse_study(
        {
            "base": TINY | {"epochs": 4, "batch_size": 20},
            "axes": {"segments": [1, "per_channel"], "seed": [0, 1]},
            "tune": {"lr": [0.001, 0.01], "seeds": [100], "extend": 1},
        }
        | said,
        "tuned",
    )


@pytest.mark.slow
def test_a_study_is_searched_then_confirmed_and_neither_twice(study_folder):
    summary = run_study(study(), workers=2)
    folder = study_folder / "results" / "tuned"
    grid = read_plan(folder).tuning.grid["lr"]
    assert {0.001, 0.01} < set(grid) <= {0.0001, 0.001, 0.01, 0.1}, "of two values the best is always on an edge"
    runs = 2 * len(grid)
    assert (summary.total, summary.trained, summary.confirmed) == (runs, runs, False)
    rows = read_rows(folder)
    assert {row["test_accuracy"] for row in rows} == {row["test_loss"] for row in rows} == {None}
    assert {row["seed"] for row in rows} == {100}
    tuning = load_tuning(folder)
    assert len(tuning) == runs
    best = tuning.loc[tuning.groupby("segments")["val_accuracy"].idxmax()]
    assert best["chosen"].all()
    assert tuning["chosen"].sum() == 2
    with pytest.raises(StoreError, match="only the learning-rate sweep"):
        load_results(folder)
    axes = plots.tuning_map(tuning).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "per-channel"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{lr:g}" for lr in grid]

    before = (folder / "results.jsonl").read_bytes()
    assert run_study(study(), workers=2).reused == runs
    assert (folder / "results.jsonl").read_bytes() == before

    confirmation = run_study(study(), workers=2, confirm=True)
    assert (confirmation.total, confirmation.reused, confirmation.trained) == (runs + 4, runs, 4)
    results = load_results(folder)
    assert len(results) == 4
    assert results["test_accuracy"].notna().all()
    assert set(results["seed"]) == {0, 1}
    chosen = dict(zip(best["segments"], best["lr"], strict=True))
    assert [row["lr"] for _, row in results.iterrows()] == [chosen[row["segments"]] for _, row in results.iterrows()]
    after = (folder / "results.jsonl").read_bytes()
    for confirm in (True, False):
        assert run_study(study(), workers=2, confirm=confirm).trained == 0
        assert len(load_results(folder)) == 4
    assert (folder / "results.jsonl").read_bytes() == after
    assert json.loads((folder / "plan.json").read_text())["tuning"]["choices"]
