"""A study's folder as tables: their rows, and their display in a notebook."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spectrum.design.run import RunConfig
from spectrum.results import Results, load_history, load_results, load_tuning
from spectrum.study.store import ROWS, Store, StoreError
from tests.plans import plan_of

STUDY = Path(__file__).parents[1] / "results/order"


def row(id: str, status: str = "done", **more: Any) -> dict[str, Any]:
    return {"id": id, "status": status, **more}


def test_results_are_the_runs_of_the_plan_in_its_order(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.freeze(plan_of({"hash": "111", "points": [{"id": id} for id in ("c", "not yet run", "a")]}))
        for id in "abc":
            store.append(row(id, accuracy=0.5))
        store.append(row("a", "failed"))
    assert list(load_results(tmp_path)["id"]) == ["c", "a"]
    assert list(load_results(tmp_path)["status"]) == ["done", "done"]
    assert list(load_results(str(tmp_path), all_runs=True)["id"]) == ["c", "a", "b"]


def test_a_failed_run_has_a_row_without_accuracy(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append(row("a", accuracy=0.5))
        store.append(row("b", "failed", reason="oom"))
    results = load_results(tmp_path).set_index("id")
    assert results.loc["b", "status"] == "failed"
    assert results["accuracy"].isna().to_dict() == {"a": False, "b": True}


def test_rows_older_than_a_field_of_a_run_have_its_default(tmp_path: Path) -> None:
    run = RunConfig(segments=4, ema=0.99).model_dump(mode="json")
    older = {name: value for name, value in run.items() if name not in ("ema", "downsampling")}
    with Store(tmp_path) as store:
        store.append(row("a", **older))
        store.append(row("b", **run))
    results = load_results(tmp_path).set_index("id")
    assert results["ema"].to_dict() == {"a": RunConfig().ema, "b": 0.99}
    assert list(results["downsampling"]) == [RunConfig().downsampling] * 2


def test_a_folder_without_results_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none: no such folder"):
        load_results(tmp_path / "none")
    with pytest.raises(StoreError, match="is not a results folder"):
        load_results(tmp_path)
    (tmp_path / ROWS).touch()
    with pytest.raises(StoreError, match="no rows yet"):
        load_results(tmp_path)


def test_of_an_epoch_that_was_run_twice_the_last_is_kept(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append_history([{"id": "a", "epoch": epoch, "loss": 1.0} for epoch in (1, 2)])
        store.append_history([{"id": "b", "epoch": 1, "loss": 2.0}])
        store.append_history([{"id": "a", "epoch": epoch, "loss": 3.0} for epoch in (2, 3)])
    history = load_history(tmp_path).set_index(["id", "epoch"])["loss"]
    assert history.to_dict() == {("a", 1): 1.0, ("a", 2): 3.0, ("a", 3): 3.0, ("b", 1): 2.0}


def test_a_folder_without_history_gives_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / ROWS).touch()
    assert len(load_history(tmp_path)) == 0


@pytest.mark.parametrize("load", [load_results, load_history, load_tuning])
@pytest.mark.parametrize(
    ("folder", "why"),
    [
        (None, "got NoneType"),
        (3, "got int"),
        ("", "got ''"),
        ("nope", "nope: no such folder"),
        (__file__, "is a file"),
        (Path(__file__).parent, "is not a results folder"),
    ],
)
def test_what_is_no_results_folder_is_refused_by_every_reader(load: Any, folder: Any, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        load(folder)


def test_a_truth_is_true_or_false() -> None:
    with pytest.raises(ValueError, match="all_runs='no': expected True or False"):
        load_results(STUDY, all_runs="no")  # type: ignore[arg-type]


# What a notebook shows


def shown(results: pd.DataFrame) -> str:
    text = Results(results)._repr_html_()
    assert text is not None
    return text


def cells(text: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    return [re.findall(r"<td>(.*?)</td>", line) for line in rows if "<td>" in line]


def test_a_notebook_shows_one_row_a_run_with_interval_and_budget() -> None:
    results = load_results(STUDY)
    text = shown(results)
    assert [line[0] for line in cells(text)] == ["1", "4", "16", "32", "per-channel"] * 2
    low = results[(results["segments"] == 1) & (results["order"] == "pointwise_first")]
    assert f"{100 * low['test_accuracy'].mean():.2f} ± " in cells(text)[0][2]
    for said in ("order 8effe232", "fashion_mnist", "MAC-matched", "140 runs", "the test set"):
        assert said in text


def test_rows_that_are_picked_are_shown_as_such_too() -> None:
    results = load_results(STUDY)
    text = shown(results[results["segments"].isin([1, 4])])
    assert [line[0] for line in cells(text)] == ["1", "4"] * 2
    assert "56 runs" in text


@pytest.mark.parametrize(
    "pick",
    [
        lambda table: table[["segments", "seed"]],
        lambda table: table.iloc[:0],
        lambda table: pd.concat([table, table]),  # every run twice: an interval of it would mislead
        lambda table: table.drop(columns="realised_segments"),
        lambda table: table.assign(test_accuracy=None, val_accuracy=None),
    ],
    ids=["two columns", "no rows", "runs twice", "a column less", "all failed"],
)
def test_what_has_no_summary_is_shown_as_pandas_shows_it(pick: Any) -> None:
    table = pick(load_results(STUDY))
    assert shown(table) == pd.DataFrame(table)._repr_html_()


def test_failed_runs_are_told_and_names_are_text() -> None:
    results = load_results(STUDY)
    results["dataset"] = "<img onerror=x>"
    results.loc[0, ["status", "test_accuracy"]] = ["failed", None]
    text = shown(results)
    assert "39 runs, 1 failed" in text
    assert "<img" not in text


def test_the_rest_of_pandas_works_on_it_as_on_any_table() -> None:
    results = load_results(STUDY)
    assert isinstance(results, pd.DataFrame)
    assert type(results.set_index("id")) is Results
    pd.testing.assert_series_equal(
        results.groupby("segments", sort=False)["test_accuracy"].mean(),
        pd.DataFrame(results).groupby("segments", sort=False)["test_accuracy"].mean(),
    )
