"""Options that a page calls common to all runs are the same in all runs."""

import re
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum import RunConfig, load_results
from spectrum.analysis.described import TOLD, choice_name
from spectrum.analysis.held import differing, held_equal
from spectrum.analysis.page import page_of
from spectrum.design.options import without_effect
from spectrum.design.study_file import parse_study
from spectrum.models.position import PLACES
from spectrum.study.planning import CostedRun
from spectrum.study.store import read_plan
from tests.plans import plan_of

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/plan.json"))


def terms(page, heading):
    """The terms of one section of a page, with their text."""
    section = page.partition(f">{heading}</h2>")[2].partition("<h2")[0]
    return {unescape(term): unescape(said) for term, said in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", section)}


def said(value):
    """A value in the wording of a page."""
    value = list(value) if isinstance(value, tuple) else value
    return {"True": "yes", "False": "no", "None": "not set", "[]": "none"}.get(str(value), str(value))


def said_of(run, field):
    return said(getattr(run, field))


def page_of_study(file):
    """The page of a study that was planned and not run, and its runs."""
    study = parse_study(file, "made up")
    runs = study.runs()
    entries = [CostedRun(run, 1, 1, 1, (), run).record().entry() for run in runs]
    plan = {
        "study": study.name, "file": "made up.toml", "overrides": {}, "imports": [], "question": "", "hash": study.hash,
        "budget": study.budget.model_dump(mode="json"), "base": study.base.model_dump(mode="json"),
        "varied": study.varied(), "contrasts": [], "points": entries,
    }  # fmt: skip
    empty = pd.DataFrame()
    return page_of(empty, plan_of(plan), empty, {}, empty), runs


STUDY = {
    "a model of its own": {"base": {"model": "resnext_small"}, "axes": {"segments": [1, 4]}},
    "models as an axis": {"axes": {"model": ["resnext_small", "mobilenet_v1"], "segments": [1, 4]}},
    "models of one kind": {"cases": [{"model": "resnext"}, {"model": "resnext_small"}]},
    "a model's value undone": {"base": {"model": "resnext_small"}, "axes": {"activation": ["none", "relu"]}},
    "a recipe": {"base": {"recipe": "jft"}, "axes": {"segments": [1, 4]}},
    "recipes as an axis": {"axes": {"recipe": ["jft", "imagenet_xception"], "seed": [0, 1]}},
    "a base that no point has": {"base": {"activation": "relu"}, "axes": {"activation": ["none", "gelu"]}},
    "images": {"base": {"image_size": 16, "resize": "centre_crop"}, "axes": {"flip": [True, False]}},
    "no 1×1": {"base": {"pointwise": False}, "axes": {"segments": [1, 4]}},
    "optimisers": {"axes": {"optimizer": ["adamw", "rmsprop"]}, "base": {"lr": 0.001}},
    "a schedule": {"base": {"schedule": "exponential", "decay_images": 100}},
}


@pytest.mark.parametrize("name", STUDY)
def test_held_equal_is_what_the_runs_have_in_common(name):
    page, runs = page_of_study(STUDY[name])
    held = terms(page, "Settings that all runs share")
    common = {
        field: getattr(runs[0], field)
        for field in RunConfig.model_fields
        if len({repr(getattr(run, field)) for run in runs}) == 1
    }
    assert held.keys() <= common.keys(), "what differs is not listed"
    assert held == {field: said(common[field]) for field in held}
    idle = set.intersection(*(set(without_effect(dict(run))) for run in runs))
    assert common.keys() - held.keys() <= idle | {"seed"}, "all else is"
    assert not held.keys() & idle


@pytest.mark.parametrize("name", STUDY)
def test_settings_that_are_folded_are_those_at_their_defaults(name):
    page, runs = page_of_study(STUDY[name])
    shared = page.partition(">Settings that all runs share</h2>")[2].partition("<h2")[0]
    above, _, folded = shared.partition("<details>")
    above, folded = (dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", part)) for part in (above, folded))
    bare = {} if runs[0].pointwise else {"pointwise": False}
    plain = RunConfig(model=runs[0].model if "model" in above else "probe", segments=runs[0].segments, **bare)
    assert {"dataset", "epochs", "batch_size"} <= above.keys()
    assert {field: unescape(value) for field, value in folded.items()} == {
        field: said_of(plain, field) for field in folded
    }
    assert all(said_of(plain, field) != unescape(above[field]) for field in above.keys() - {*TOLD, *PLACES, *bare})
    count = re.search(r"<summary>(\d+) more, each at its default", shared)
    assert int(count[1]) == len(folded)


def test_networks_with_relu_and_norm_are_called_so():
    held = terms(page_of_study(STUDY["a model of its own"])[0], "Settings that all runs share")
    assert (held["activation"], held["norm"]) == ("relu", "yes")
    page = page_of_study(STUDY["models as an axis"])[0]
    assert not {"order", "model"} & terms(page, "Settings that all runs share").keys()
    assert "order: pointwise first, spatial first" in terms(page, "Design")["what differs with it"]


def test_runs_of_a_recipe_are_listed_with_its_optimiser():
    held = terms(page_of_study(STUDY["a recipe"])[0], "Settings that all runs share")
    assert {name: held[name] for name in ("optimizer", "lr", "schedule", "decay", "ema")} == {
        "optimizer": "rmsprop", "lr": "0.001", "schedule": "exponential", "decay": "0.9", "ema": "0.9999",
    }  # fmt: skip
    assert not {"nesterov", "decay_epochs"} & held.keys()


def test_what_varies_is_told_from_the_runs_where_the_base_has_another_value():
    assert "activation: none, gelu" in page_of_study(STUDY["a base that no point has"])[0]


def test_a_choice_is_called_by_what_its_run_has_and_not_by_the_base():
    run = RunConfig(segments=4, activation="none")
    entry = {"point": run.model_dump(mode="json", exclude_defaults=True), "match": "none"}
    plan = {"varied": ["segments", "activation"], "budget": {"match": ["none"]}, "base": {"activation": "relu"}}
    whole = plan_of(plan | {"tuning": {"choices": [entry]}})
    assert choice_name(whole, whole.tuning.choices[0]) == "4 segments, no activation"


@settings(max_examples=200)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 1)), max_size=4))
def test_what_is_common_and_what_differs_exclude_each_other_and_are_all_that_every_run_tells(runs):
    held, other = held_equal(runs), differing(runs)
    assert not held.keys() & other.keys()
    assert held.keys() | other.keys() == (set.intersection(*map(set, runs)) if runs else set())
    assert all(run[name] == value for run in runs for name, value in held.items())


def test_a_plan_that_leaves_defaults_out_makes_no_page_say_more_than_it_knows():
    plan = read_plan(RESULTS / "families")
    assert held_equal([run.stored for run in plan.runs]).keys() < held_equal([run.options for run in plan.runs]).keys()


# Committed studies


@pytest.mark.parametrize("name", STUDIES)
def test_the_runs_of_a_committed_plan_are_completed_to_those_that_their_ids_name(name):
    for run in read_plan(RESULTS / name).runs:
        config = RunConfig(**run.options)
        assert config.id == run.id
        assert config.model_dump() == RunConfig.model_validate(run.options).model_dump()


@pytest.mark.parametrize("name", STUDIES)
def test_the_page_of_a_study_calls_held_equal_what_its_runs_have_in_common(name):
    empty, plan = pd.DataFrame(), read_plan(RESULTS / name)
    held = terms(page_of(load_results(RESULTS / name), plan, empty, {}, empty), "Settings that all runs share")
    configs = [RunConfig(**run.options) for run in plan.runs]
    for field in RunConfig.model_fields:
        values = {getattr(config, field) for config in configs}
        if field in held:
            assert len(values) == 1, field
            assert held[field] in map(said, values), field
        else:
            idle = set.intersection(*(set(without_effect(dict(config))) for config in configs)) | {"seed", "width"}
            assert len(values) > 1 or field in idle, field
