"""The record of plan.json: committed plans round-trip byte for byte, and invalid plans are refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum import read_plan
from spectrum.design.changes import all_fields
from spectrum.design.plan import Plan, PlanError, PlannedChoice, PlannedContrast, PlannedRun, PlannedTuning
from spectrum.design.run import RunConfig
from spectrum.study.store import StoreError

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(path.relative_to(ROOT) for path in ROOT.glob("results/**/plan*.json"))

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)
words = st.text(max_size=8)
fields = st.dictionaries(words, st.none() | st.booleans() | numbers | words | st.lists(numbers, max_size=2), max_size=3)


def some(required, optional):
    """Objects of a plan, as its file has them."""
    return st.fixed_dictionaries(required, optional=optional)


runs = some(
    {"id": words},
    {
        "asked": words, "match": words, "budget": numbers, "mismatch": numbers | st.none(), "params": st.integers(0),
        "macs": st.integers(0), "realised_segments": st.lists(st.integers(1), max_size=3), "width": numbers,
        "clamped_layers": st.dictionaries(words, st.integers(0), max_size=2), "step_seconds": st.none(),
        "point": fields, "same_as": words,
    },
)  # fmt: skip
contrasts = some(
    {"name": words, "between": st.lists(fields, min_size=2, max_size=2)},
    {"across": st.lists(fields, max_size=2) | words, "margin": numbers | st.none(), "confounded": st.booleans()},
)
tunings = some(
    {},
    {
        "grid": st.dictionaries(words, st.lists(st.floats(0.001, 1), max_size=3), max_size=2),
        "points": st.lists(runs, max_size=2),
        "networks": st.lists(runs, max_size=2),
        "choices": st.lists(some({"id": words}, {"point": fields, "edges": st.lists(words, max_size=2)}), max_size=2),
    },
)
plans = some(
    {"points": st.lists(runs, max_size=3)},
    {
        "study": words, "question": words | st.none(), "hash": words, "varied": st.lists(words, max_size=3),
        "overrides": fields, "base": fields, "contrasts": st.lists(contrasts, max_size=2), "tuning": tunings,
        "budget": some({"match": words | st.lists(words, max_size=2)}, {"reference": fields}),
    },
)  # fmt: skip


@pytest.mark.parametrize("path", COMMITTED, ids=str)
def test_a_committed_plan_is_written_as_it_was_read(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert Plan.from_json(text).to_json() == text


@settings(max_examples=200)
@given(plans)
def test_any_plan_keeps_its_keys_and_their_values(plan):
    """Whatever its keys' order, what is read is what is written; a number stays an integer or a float."""
    written = Plan.from_json(json.dumps(plan)).to_json()
    assert json.dumps(json.loads(written), sort_keys=True) == json.dumps(plan, sort_keys=True)
    assert Plan.from_json(written).to_json() == written


@pytest.mark.parametrize("path", COMMITTED, ids=str)
def test_what_is_derived_of_a_plan_is_what_its_text_says(path):
    """Against the slow way: the keys of the file, one by one."""
    stored, plan = json.loads((ROOT / path).read_text()), Plan.from_json((ROOT / path).read_bytes())
    tuning = stored.get("tuning", {})
    ids = [entry["id"] for entry in [*tuning.get("points", []), *stored["points"]]]
    assert plan.ids == sorted(set(ids), key=ids.index)
    assert plan.budgets == tuple(stored["budget"]["match"])
    assert plan.tuned == tuple(tuning.get("grid", ()))
    assert [run.id for run in plan.asked] == [entry["id"] for entry in tuning.get("networks", stored["points"])]
    assert [run.options for run in plan.runs] == [all_fields(entry["point"]) for entry in stored["points"]]
    assert all(RunConfig(**run.options).id == run.id for run in plan.known)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSON"),
        ("[]", "expected a table"),
        ("{}", "points: is missing"),
        ('{"points": [], "pionts": []}', 'pionts: unknown key; did you mean "points"?'),
        ('{"points": [{"id": "a", "parms": 3}]}', 'points.0.parms: unknown key; did you mean "params"?'),
        ('{"points": [{"id": 7}]}', "points.0.id: .*string.*7"),
        ('{"points": [{}]}', "points.0.id: is missing"),
        ('{"points": [{"id": "a", "params": 1.5}]}', "points.0.params: .*1.5"),
        ('{"points": [{"id": "a", "params": "12"}]}', "points.0.params: .*'12'"),
        ('{"points": [{"id": "a", "norms": true}]}', "points.0.norms: .*True"),
        ('{"points": [{"id": "a", "mismatch": NaN}]}', "points.0.mismatch.*nan"),
        ('{"points": [], "tuning": {"grid": {"lr": ["x"]}}}', "tuning.grid.lr.0: .*number.*'x'"),
        ('{"points": [], "contrasts": {}}', "contrasts: expected a list"),
        ('{"points": [], "tuning": []}', "tuning: expected a table"),
        ("null", "expected a table"),
    ],
)
def test_what_is_no_plan_is_refused_with_its_key(tmp_path, text, why):
    with pytest.raises(PlanError, match=why):
        Plan.from_json(text)
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(StoreError, match=rf"plan\.json: garbled \(.*{why}"):
        read_plan(tmp_path)


def test_a_number_that_is_not_finite_is_never_written():
    with pytest.raises(ValueError, match="finite"):
        PlannedRun(id="a", mismatch=float("inf"))


@pytest.mark.parametrize("folder", ["", "nowhere", 3, None])
def test_a_folder_without_results_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="folder"):
        read_plan(folder)


def test_a_folder_with_rows_and_no_plan_is_told_how_to_get_one(tmp_path):
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(StoreError, match=r"has no plan\.json; run the study first"):
        read_plan(tmp_path)


def test_no_other_module_reads_a_plan_by_its_keys():
    """`plan["points"]` would be a second reader, which knows nothing of early plans."""
    keys = {name for record in (Plan, PlannedRun, PlannedContrast, PlannedTuning, PlannedChoice)
            for name in (field.serialization_alias or own for own, field in record.model_fields.items())}  # fmt: skip
    by_key = re.compile(rf"""\b(?:plan|frozen|entry|run|tuning)(?:\.get\(|\[)["'](?:{"|".join(sorted(keys))})["']""")
    paths = [
        path for folder in ("spectrum", "results", "experiments", "notebooks") for path in (ROOT / folder).rglob("*")
    ]
    for path in paths:
        if path.suffix in (".py", ".jinja", ".ipynb") and path.name != "plan.py":
            found = by_key.findall(path.read_text(encoding="utf-8").replace('\\"', '"'))
            assert not found, f"{path}: {found}"


def test_reading_a_plan_loads_no_torch():
    code = "import sys; from spectrum import read_plan; read_plan('results/order'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
