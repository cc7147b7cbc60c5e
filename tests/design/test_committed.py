"""Every committed row and plan keeps its ids: the fields that they name give the same hash again."""

import json
from pathlib import Path

import pytest

from spectrum.design.changes import all_fields
from spectrum.design.run import RunConfig

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = sorted(str(path.parent.relative_to(RESULTS)) for path in RESULTS.rglob("plan.json"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_of(fields: dict) -> RunConfig:
    """The run of a row: a row names every field of its time, and those since have their defaults."""
    return RunConfig(**all_fields({name: value for name, value in fields.items() if name in RunConfig.model_fields}))


def entries(plan: dict) -> list[dict]:
    tuning = plan.get("tuning", {})
    lists = [plan["points"], *(tuning.get(name, []) for name in ("networks", "points", "choices"))]
    return [entry for entries in lists for entry in entries if "point" in entry and "id" in entry]


def test_there_are_committed_studies() -> None:
    assert len(STUDIES) == 13


@pytest.mark.parametrize("study", STUDIES)
def test_the_fields_of_a_committed_row_give_its_id(study: str) -> None:
    rows = lines(RESULTS / study / "results.jsonl")
    assert rows
    for row in rows:
        assert run_of(row).id == row["id"]


@pytest.mark.parametrize("study", STUDIES)
def test_the_runs_of_a_committed_plan_give_their_ids(study: str) -> None:
    plan = json.loads((RESULTS / study / "plan.json").read_text(encoding="utf-8"))
    found = entries(plan)
    assert found
    for entry in found:
        assert run_of(entry["point"]).id == entry["id"]
