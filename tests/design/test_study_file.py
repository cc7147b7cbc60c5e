import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum import RunConfig, Study, load_study
from spectrum._records import SpecError
from spectrum.design.changes import choices, merged, named
from spectrum.design.keys import NETWORK, network_key
from spectrum.design.recipes import RECIPES
from spectrum.design.study_file import Contrast, Tune, as_study, parse_study

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


def refuse(said):
    with pytest.raises(SpecError) as caught:
        parse_study(said, "x")
    return str(caught.value)


def interaction(across, **more):
    axes = {"segments": [1, 2], "activation": ["none", "relu"]}
    between = [{"activation": "relu"}, {"activation": "none"}]
    return {"axes": axes, "contrasts": [{"name": "x", "between": between, "across": across, **more}]}


def contrast(side):
    contrasts = [{"name": "x", "between": [side, {"segments": 2}]}]
    return {"axes": {"segments": [1, 2]}, "contrasts": contrasts}


def margin(value):
    asked = contrast({"segments": 1})
    return asked | {"contrasts": [one | {"margin": value} for one in asked["contrasts"]]}


def test_all_faults_of_a_file_are_told_at_once():
    said = {
        "bas": {},
        "base": {"datset": "digits", "lr": -1.0},
        "axes": {"segmnts": [1], "activation": ["rellu", "none", "none", "tanhh"], "epochs": 3},
        "cases": [{"ordr": 1, "epochs": 2}],
    }
    assert sorted(line.partition(";")[0] for line in refuse(said).splitlines()) == [
        "axes.activation: 'none' is listed twice",
        "axes.activation: 'rellu' is unknown",
        "axes.activation: 'tanhh' is unknown",
        "axes.epochs: expected a list of values, as in epochs = [3]",
        "axes.segmnts: unknown key",
        "bas: unknown key",
        "base.datset: unknown key",
        "base.lr: input should be greater than 0 (got -1.0)",
        "cases.0.epochs: is an axis too, which would override it",
        "cases.0.ordr: unknown key",
    ]


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"base": {"epoch": 2}}, 'base.epoch: unknown key; did you mean "epochs"?'),
        ({"bas": {}}, 'bas: unknown key; did you mean "base"?'),
        ({"axes": {"sede": [1]}}, 'axes.sede: unknown key; did you mean "seed"?'),
        ({"cases": [{"segmets": 1}]}, 'cases.0.segmets: unknown key; did you mean "segments"?'),
        ({"axes": {"segments": []}}, "axes.segments: empty"),
        ({"axes": {"segments": 3}}, "axes.segments: expected a list of values, as in segments = [3]"),
        ({"axes": {"segments": [1, 2, 1]}}, "axes.segments: 1 is listed twice"),
        ({"axes": {"segments": [0]}}, "axes.segments: 0 is not a number of segments; try 1, 2"),
        ({"axes": {"segments": [-1]}}, "axes.segments: -1 is not a number of segments"),
        ({"axes": {"segments": [10**9]}}, "axes.segments: 1000000000 is not a number of segments"),
        ({"axes": {"segments": [2.0]}}, "axes.segments: 2.0 is not"),
        ({"axes": {"segments": [True]}}, "axes.segments: True is not"),
        ({"base": {"activation": "rellu"}}, "base.activation: 'rellu' is unknown; did you mean \"relu\"?"),
        ({"base": {"order": "sideways"}}, "base.order: 'sideways' is unknown; try 'pointwise_first' or"),
        ({"base": {"lr": -1.0}}, "base.lr: input should be greater than 0 (got -1.0)"),
        ({"base": {"lr": 1e31}}, "base.lr: input should be less than or equal to 1000000"),
        ({"base": {"lr": float("nan")}}, "base.lr: input should be a finite number"),
        ({"base": {"epochs": "8"}}, "base.epochs: '8' is text; write 8 without quotes"),
        ({"base": {"widths": [8, 0]}}, "base.widths.1"),
        ({"base": {"model": "prob"}}, "model='prob': unknown; did you mean 'probe'?"),
        ({"base": {"segments": 4, "segment_width": 2}}, "segments and segment_width: give one of the two"),
        (
            {"base": {"segment_width": 4}, "axes": {"segments": [1, 2]}},
            "base.segment_width: has no effect, since axes.segments sets the segments of every run",
        ),
        (
            {"base": {"segment_shares": [2, 1]}, "axes": {"segment_width": [1, 2]}},
            "base.segment_shares: has no effect, since axes.segment_width sets the segments of every run",
        ),
        ({"base": {"shuffle": True}}, "shuffle: only relabels rows"),
        ({"base": {"pointwise": False, "norm": True}}, "norm: needs the 1×1, which pointwise = false removes"),
        ({"base": {"warmup_epochs": 8.0}}, "warmup_epochs: 8.0 must be below epochs = 8; give fewer"),
        ({"budget": {"match": "weights"}}, "budget.match.0: 'weights' is unknown; try 'none'"),
        ({"budget": {"match": []}}, "budget.match"),
        ({"budget": {"match": ["params", "params"]}}, "match: lists a budget twice"),
        ({"budget": {"match": "params"}}, "reference: say which run sets the budget, as in reference ="),
        ({"budget": {"match": "macs", "reference": {"segmets": 1}}}, 'segmets: unknown key; did you mean "segments"?'),
        ({"budget": {"match": "macs", "reference": {"lr": 0.1}}}, "lr: unknown key"),
        ({"budget": {"match": "macs", "reference": {"segments": 0}}}, "budget.reference: segments: 0 is not a number"),
        (
            {"axes": {"widths": [[8, 16], [8, 8]]}, "budget": {"match": "macs", "reference": {"segments": 1}}},
            "widths: a budget solves for them",
        ),
        (
            {"axes": {"width": [0.5, 1.0]}, "budget": {"match": "macs", "reference": {"segments": 1, "width": 1.0}}},
            "budget.reference: sets a width, which would give every width the same budget",
        ),
        (contrast({"segments": {"a": 1}}), 'compares segments = {"a": 1}, but the study trains only 1 and 2'),
        (contrast({"segments": [[1]]}), "compares segments = [[1]], but the study trains only 1 and 2"),
        ({"tune": {}}, "tune: give at least two values of lr or of weight_decay"),
        ({"tune": {"lr": []}}, "tune: give at least two values of lr"),
        ({"tune": {"lr": [0.1]}}, "tune: give at least two values of lr"),
        ({"tune": {"lr": [0.1, 0.1]}}, "lr: lists a value twice"),
        ({"tune": {"lr": [0.0, 0.1]}}, "tune.lr.0: input should be greater than 0"),
        ({"tune": {"lr": [0.1, 0.2], "seeds": []}}, "tune.seeds"),
        ({"tune": {"weight_decay": [0.0, 1e-4], "extend": 1}}, "extend: has no next value beyond 0"),
        ({"tune": {"lr": [0.1, 0.2], "seeds": [0]}}, "tune.seeds: 0 is a seed of the final runs too; try 1000"),
        ({"axes": {"lr": [0.1, 0.2]}, "tune": {"lr": [0.1, 0.2]}}, "tune.lr: varies in this study"),
        (contrast({"order": "spatial_first"}), "between.0.order: does not vary in this study; what varies is segments"),
        (
            contrast({"segments": 5}),
            "compares segments = 5, but the study trains only 1 and 2; add 5 to [axes] segments, or compare",
        ),
        (contrast({"segmets": 1}), 'between.0.segmets: unknown key; did you mean "segments"?'),
        (contrast({"segments": 2}), "give two different sides"),
        (contrast({}), "give two different sides"),
        (contrast({"match": "macs"}), "between.0.match: does not vary in this study"),
        ({"contrasts": [{"name": "x", "between": [{"segments": 1}]}]}, "contrasts.0.between"),
        (interaction([{"segments": 1}]), 'across: expected two settings or "segments", got 1'),
        (interaction("order"), "contrasts.0.across"),
        (interaction([{"segments": 1}, {"segments": 5}]), "compares segments = 5, but the study trains only 1 and 2"),
        (interaction([{"segments": 1}, {"segments": 1}]), "across: give two different settings"),
        (interaction([{"segments": 1}, {"activation": "relu"}]), "across.1.activation: is in `between` too"),
        (
            interaction("segments", margin=0.1),
            'margin: is a difference in accuracy; with across = "segments" there is a slope',
        ),
        (
            contrast({"segments": 1})
            | {"contrasts": [{"name": "x", "between": [{"segments": 1}, {"segments": 2}], "across": "segments"}]},
            "across: segments must vary in the study, and not be what is compared",
        ),
        ({"base": {"label_noise": 0.1}}, "label_noise: has no effect without a teacher; set teacher_segments"),
        ({"base": {"dataset": "gaussian"}}, "has no labels of its own; set teacher_segments"),
        ({"base": {"teacher_segments": 1, "teacher_seed": "own"}}, "'own' is not a seed; try 0, 1, 2 … or \"seed\""),
        ({"cases": [{"segments": 1}, {"segments": 1}]}, "cases: two of them are the same run"),
        (
            margin(2),
            "contrasts.0.margin: 2 would be 200 percentage points; write a share of 1 up to 0.2: 0.005 is",
        ),
        (margin(0.5), "contrasts.0.margin: 0.5 would be 50 percentage points"),
        (
            margin(-0.005),
            "contrasts.0.margin: -0.005 is not above 0; write a share of 1: 0.005 is half a",
        ),
        (margin(0), "contrasts.0.margin: 0 is not above 0"),
        (margin(True), "contrasts.0.margin: True is not a difference in accuracy"),
        (margin("0.5%"), "contrasts.0.margin: '0.5%' is not a difference in accuracy"),
        (margin(float("nan")), "contrasts.0.margin: nan is not a difference in accuracy"),
        (margin(float("inf")), "contrasts.0.margin: inf is not a difference in accuracy"),
        (
            contrast({"segments": "1"}),
            'contrast "x": compares segments = "1", which no run has; write 1 without quotes',
        ),
        (
            {"axes": {"segments": [1, "per_channel"]}}
            | {"contrasts": [{"name": "x", "between": [{"segments": 1}, {"segments": "Per_Channel"}]}]},
            'compares segments = "Per_Channel", which no run has; did you mean "per_channel"?',
        ),
        ({"contrasts": {"name": "x"}}, "contrasts: is one table; write [[contrasts]], with two brackets, above each"),
        ({"cases": {"segments": 1}}, "cases: is one table; write [[cases]], with two brackets"),
        ({"axes": {"seed": 3}}, "axes.seed: expected a list of values, as in seed = [3]"),
        ({"axes": {"seed": "0-2"}}, "axes.seed: expected a list of values, each written out, as in seed = [0, 1, 2]"),
        ({"axes": {"seed": "0..99"}}, "each written out, as in seed = [0, 1, …]"),
        ({"axes": {"segments": ["1"]}}, "axes.segments: '1' is text, not a number of segments; write 1 without quotes"),
        ({"axes": {"segments": ["Per-Channel"]}}, 'is not a number of segments; did you mean "per_channel"?'),
        ({"axes": {"epochs": ["3"]}}, "axes.epochs: '3' is text; write 3 without quotes"),
        ({"base": {"lr": "10%"}}, "base.lr: '10%' is no number; write a share of 1 without quotes, 0.1"),
        ({"base": {"epochs": "three"}}, "base.epochs: expected a whole number (got 'three')"),
        ({"base": {"flip": "true"}}, "base.flip: expected true or false, without quotes (got 'true')"),
        ({"base": {"flip": 1}}, "base.flip: expected true or false, without quotes (got 1)"),
        ({"base": 3}, "base: expected a table"),
        ({"axes": {"activation": ["none", "relu"], "pointwise": [False]}}, "at activation = 'relu'"),
        ({"name": "y"}, "name: a study has the name of its file"),
    ],
)
def test_a_wrong_study_says_which_field_and_what_would_work(said, says):
    assert says in refuse(said)


def test_all_faults_are_told_at_once():
    said = refuse({"base": {"epoch": 2, "lr": "x"}, "question": 3})
    assert len(said.splitlines()) == 3


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["question", "base", "axes", "cases", "budget", "tune", "contrasts", *list(RunConfig.model_fields)[:8], "junk"]
)
fields = st.dictionaries(st.sampled_from([*RunConfig.model_fields, "junk"]), values, max_size=4)


@pytest.mark.medium
@settings(max_examples=300)
@given(st.dictionaries(keys, values | fields, max_size=4))
def test_whatever_a_file_says_is_a_study_or_refused(said):
    try:
        assert parse_study(said, "x").runs()
    except SpecError as error:
        message = str(error).strip()
        assert message


def test_axes_multiply_and_seeds_are_outermost():
    study = parse_study({"axes": {"segments": [1, "per_channel"], "seed": [0, 1]}}, "x")
    assert [(p.segments, p.seed) for p in study.runs()] == [
        (1, 0),
        ("per_channel", 0),
        (1, 1),
        ("per_channel", 1),
    ]


def test_cases_are_listed_one_by_one_and_multiply_with_axes():
    said = {"cases": [{"segments": 1, "pointwise": False}, {"segment_width": 4}], "axes": {"seed": [0, 1]}}
    runs = parse_study(said, "x").runs()
    assert [(p.segments, p.segment_width, p.pointwise) for p in runs[:2]] == [(1, None, False), (None, 4, True)]
    assert len(runs) == 4


def test_segments_and_segment_width_exclude_each_other_along_an_axis():
    study = parse_study({"base": {"segments": 4}, "axes": {"segment_width": [1, 2]}}, "x")
    assert [(p.segments, p.segment_width) for p in study.runs()] == [(None, 1), (None, 2)]


def test_an_id_depends_on_what_differs_from_the_defaults_only():
    assert RunConfig().id == RunConfig(segments="per_channel", epochs=8, lr=0.1).id
    assert RunConfig(lr=1).id == RunConfig(lr=1.0).id
    # As it was in the first version: rows that were written then must keep their meaning.
    assert RunConfig().id == "de94776cc8fb4454"
    assert RunConfig(dataset="cifar10", segments=3, seed=7, widths=(8, 16)).id == "a2a8d420f2c89c32"


OTHER = {
    "dataset": "cifar10", "image_size": 16, "train_images": 100, "validation_fraction": 0.2, "flip": True,
    "shift": 1, "cutout": 2, "model": "another", "width": 2.0, "widths": (4,), "depth": 2, "segments": 4,
    "segment_width": 4, "order": "spatial_first", "activation": "relu", "norm": True, "pointwise": False,
    "pointwise_segments": 2, "shuffle": True, "residual": False, "dropout": 0.5, "epochs": 9, "batch_size": 64,
    "optimizer": "adamw", "lr": 0.2, "momentum": 0.8, "weight_decay": 0.0, "schedule": "one_cycle",
    "warmup_epochs": 1.0, "decay": 0.9, "decay_epochs": 1.0, "label_smoothing": 0.1, "ema": 0.9,
    "autocast": True, "compile": True, "seed": 100, "teacher_segments": 2, "label_noise": 0.1, "teacher_seed": 1,
    "downsampling": "stride", "scored_on": "validation", "hidden": (8,), "padding": "torch", "form": "canonical",
    "norm_eps": 1e-3, "norm_momentum": 0.5, "nesterov": False, "decay_images": 100, "resize": "centre_crop",
    "normalisation": "plus_minus_one", "stage_segments": (1, 2, 4), "segment_shares": (2, 1),
    "stem_stride": 1,
}  # fmt: skip


@pytest.mark.parametrize("field", [name for name in RunConfig.model_fields if name != "recipe"])  # whose values are
def test_every_field_is_part_of_the_id(field):
    changed = RunConfig().model_copy(
        update={field: OTHER[field]}
    )  # unchecked: some fields need another one beside them
    assert changed.id != RunConfig().id


def test_a_schedule_and_proportions_take_the_place_of_a_number_of_segments():
    said = {"cases": [{"segments": 2}, {"stage_segments": [1, 4, "per_channel"]}, {"segment_shares": [3, 2, 1]}]}
    runs = parse_study(said, "x").runs()
    assert [(p.segments, p.stage_segments, p.segment_shares) for p in runs] == [
        (2, None, "even"),
        (None, (1, 4, "per_channel"), "even"),
        (3, None, (3, 2, 1)),
    ]
    for wrong, message in (
        ({"base": {"segments": 2, "segment_shares": [3, 2, 1]}}, "segment_shares: has 3; set segments to that number"),
        ({"base": {"segments": 2, "stage_segments": [1, 2, 3]}}, "segments and stage_segments: give one of the two"),
        ({"base": {"segment_shares": [1, 0]}}, r"segment_shares: .*are not proportions; try "),
        ({"base": {"segment_shares": 3}}, r"segment_shares: 3 are not proportions"),
        ({"base": {"segment_shares": []}}, r"segment_shares: .*are not proportions"),
        (
            {"base": {"segment_width": 2, "segment_shares": [2, 1]}},
            "segment_width and segment_shares: give one of the two",
        ),
        ({"base": {"stage_segments": []}}, "stage_segments"),
        ({"base": {"stage_segments": [0, 1, 2]}}, "stage_segments"),
    ):
        with pytest.raises(SpecError, match=message):
            parse_study(wrong, "x")


def test_every_field_of_the_network_is_said_in_hashes_and_new_ones_only_where_they_are_set():
    assert network_key(RunConfig()) == [getattr(RunConfig(), name) for name in NETWORK[:12]]
    for field in NETWORK:
        assert network_key(RunConfig().model_copy(update={field: OTHER[field]})) != network_key(RunConfig())


def test_a_study_keeps_its_hash_when_only_words_change():
    said = {"axes": {"segments": [1, 2]}}
    assert parse_study(said, "x").hash == parse_study(said | {"question": "Why?"}, "y").hash
    assert parse_study(said, "x").hash != parse_study({"axes": {"segments": [1, 3]}}, "x").hash


def test_the_base_can_be_overridden_but_not_an_axis():
    study = parse_study({"axes": {"segments": [1, 2]}}, "x")
    assert {p.epochs for p in study.with_base(epochs=2).runs()} == {2}
    with pytest.raises(SpecError, match="segments: varies in this study"):
        study.with_base(segments=4)
    tuned = parse_study({"tune": {"lr": [0.1, 0.2]}}, "x")
    with pytest.raises(SpecError, match="lr: is tuned in this study"):
        tuned.with_base(lr=0.3)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=[path.stem for path in EXPERIMENTS])
def test_the_experiments_can_be_read_in_a_minute(path):
    study = load_study(path)
    assert study.question.endswith("?")
    assert len(study.runs()) >= (2 if path.stem.startswith("pilot") else 6)
    before_the_contrasts = path.read_text().partition("[[contrasts]]")[0]
    assert len(before_the_contrasts.splitlines()) <= 45
    assert tomllib.loads(path.read_text())["axes"]["seed"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[base\n", "not valid TOML"),
        (b"[base]\ndataset = digits\n", r"Invalid value \(at line 2, column 11\)\n  dataset = digits"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[base]\nepoch = 1\n", 'base.epoch: unknown key; did you mean "epochs"?'),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, says):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match="broken.toml: .*" + says.replace("?", r"\?")):
        load_study(path)


def test_a_missing_file_gets_a_guess(tmp_path):
    (tmp_path / "quickstart.toml").write_text("")
    with pytest.raises(SpecError, match=r"no such file; did you mean .*quickstart\.toml"):
        load_study(tmp_path / "quikstart.toml")


def test_a_bad_file_is_refused_within_two_seconds_and_nothing_is_written(tmp_path):
    (tmp_path / "bad.toml").write_text("[axes]\nsegments = [0]\n")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "spectrum", "run", "bad.toml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "axes.segments: 0 is not a number of segments" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]
    assert time.monotonic() - started < 10  # a bound for a busy machine; it takes half a second on an idle one


def test_a_run_survives_json():
    run = RunConfig(segments=3, widths=(4, 8), lr=0.3)
    fields = json.loads(json.dumps(run.model_dump(mode="json")))
    assert RunConfig(**fields) == run


# Defaults of an architecture


def test_a_run_has_its_familys_own_values_where_it_says_nothing():
    mobilenet = RunConfig(model="mobilenet_v1")
    assert (mobilenet.order, mobilenet.activation, mobilenet.norm) == ("spatial_first", "relu", True)
    assert RunConfig(model="mobilenet_v1", order="pointwise_first", activation="none", norm=False).norm is False
    assert RunConfig(model="mobilenet_v1", pointwise=False, segments=1).activation == "none"
    assert RunConfig().id == RunConfig(order="pointwise_first", activation="none", norm=False).id


def test_a_study_that_changes_the_family_changes_what_comes_with_it():
    study = parse_study({"base": {"segments": 4}, "axes": {"seed": [0, 1], "model": ["probe", "xception"]}}, "x")
    assert [run.order for run in study.runs()] == ["pointwise_first", "spatial_first"] * 2
    said = parse_study({"base": {"order": "spatial_first"}, "axes": {"model": ["probe", "resnext"]}}, "x")
    assert [run.order for run in said.runs()] == ["spatial_first"] * 2


# What is named stays, whatever its value


OPEN = {"order": choices("order"), "activation": choices("activation"), "norm": (False, True)}
FAMILIES = ("probe", "mobilenet_v1", "resnext", "xception")


@given(st.sampled_from(FAMILIES), st.data())
def test_what_the_base_names_holds_for_every_model(first, data):
    field = data.draw(st.sampled_from(list(OPEN)))
    value = data.draw(st.sampled_from(OPEN[field]))
    said = {"base": {"model": first, field: value}, "cases": [{"model": model} for model in FAMILIES]}
    for study in (
        parse_study(said, "x"),
        parse_study({**said, "base": {"model": first}}, "x").with_base(**{field: value}),
        Study(name="x", base=RunConfig(model=first, **{field: value}), axes={"model": FAMILIES}),
    ):
        assert [getattr(run, field) for run in study.runs()] == [value] * len(FAMILIES)
    others = [name for name in OPEN if name != field]
    assert [[getattr(run, name) for name in others] for run in study.runs()] == [
        [getattr(RunConfig(model=model), name) for name in others] for model in FAMILIES
    ]


@given(st.sampled_from(list(RECIPES)), st.sampled_from(list(RECIPES)), st.data())
def test_what_the_base_names_holds_for_every_recipe(first, second, data):
    field = data.draw(st.sampled_from(sorted(RECIPES[second])))
    values = [RunConfig.model_fields[field].default, RECIPES[first].get(field)]
    value = data.draw(st.sampled_from([value for value in values if value is not None] or [7]))
    base = RunConfig(recipe=first, **{field: value})
    assert getattr(merged(base, {"recipe": second}), field) == value
    study = parse_study({"base": named(base), "axes": {"recipe": [second]}}, "x")
    assert [getattr(run, field) for run in study.runs()] == [value]
    assert merged(RunConfig(recipe=first), {"recipe": second}) == RunConfig(recipe=second)


def test_the_command_line_names_a_default_too():
    from spectrum.cli.arguments import parse

    command = parse(["plan", "x.toml", "--activation", "none", "--no-norm"])
    study = Study(name="x", axes={"model": ["probe", "mobilenet_v1"]}).with_base(**command.run)
    assert [(run.activation, run.norm) for run in study.runs()] == [("none", False)] * 2


def test_what_was_named_is_known_and_survives_a_copy_and_a_file():
    run = RunConfig(model="mobilenet_v1", recipe="jft", epochs=8)
    assert named(run) == {"model": "mobilenet_v1", "recipe": "jft", "epochs": 8}
    assert named(merged(run, {"segments": 4})) == named(run) | {"segments": 4}
    assert named(merged(merged(run, {"segments": 4}), {"segment_width": 2})) == named(run) | {"segment_width": 2}
    again = RunConfig(**json.loads(run.model_dump_json()))
    assert (again, again.id) == (run, run.id)


def test_the_regular_convolution_alone_takes_nothing_of_the_family_that_was_left_open():
    study = parse_study({"base": {"model": "mobilenet_v1"}, "cases": [{"pointwise": False}, {"segments": 2}]}, "x")
    assert [(run.activation, run.norm) for run in study.runs()] == [("none", False), ("relu", True)]


# In Python


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RunConfig(datset="x"), "datset: unknown field; did you mean 'dataset'?"),
        (lambda: RunConfig(segments=0), "segments: 0 is not a number of segments"),
        (
            lambda: RunConfig(lr="x", epochs=0),
            "epochs: input should be greater than or equal to 1 (got 0)\nlr: expected a number (got 'x')",
        ),
        (lambda: RunConfig(model="prob"), "model='prob': unknown; did you mean 'probe'?"),
        (lambda: Study(axes={"segments": [1]}), "name: is missing"),
        (lambda: Study(name="x", axs={}), "axs: unknown field; did you mean 'axes'?"),
        (lambda: Study(name="x", base={"epoch": 2}), "base.epoch: unknown field; did you mean 'epochs'?"),
        (lambda: Study(name="x", base=3), "base: expected a table (got 3)"),
        (lambda: Study(name="x", axes=[1]), "axes: expected a table (got [1])"),
        (lambda: Study(name="x", axes={"segmnts": [1]}), "axes.segmnts: unknown key"),
        (lambda: Study(name="x", axes={"segments": [0]}), "axes.segments: 0 is not a number of segments"),
        (
            lambda: Study(name="x", axes={"segments": 3}),
            "axes.segments: expected a list of values, as in segments = [3]",
        ),
        (
            lambda: Study(name="x", axes={"segments": {1, 2}}),
            "axes.segments: expected a list of values, in their order",
        ),
        (lambda: Study(name="x", cases=[{"segmets": 1}]), "cases.0.segmets: unknown key"),
        (lambda: Study(name="x").with_base(epoch=3), 'epoch: unknown key; did you mean "epochs"?'),
        (lambda: Study(name="x").with_base(epochs="3"), "epochs: '3' is text; write 3 without quotes"),
        (lambda: Tune(lr=[1, 2], sed=3), "sed: unknown field; did you mean 'seeds'?"),
        (lambda: Contrast(name="x", between=[{"segments": 1}]), "between: "),
        (lambda: as_study(3), "study: expected a Study or the path of its TOML file (got int)"),
        (lambda: load_study({}), "load_study: expected the path of a study's TOML file (got dict)"),
    ],
)
def test_wrong_values_in_python_are_told_in_a_sentence(make, says):
    with pytest.raises(SpecError) as caught:
        make()
    assert says in str(caught.value)


def test_lists_and_numbers_of_numpy_are_taken_as_pythons_own():
    said = {"axes": {"segments": (1, 2), "widths": ((4, 8), (8, 8)), "seed": (0, 1)}}
    wanted = Study(name="x", **said)
    axes = {"segments": np.array([1, 2]), "widths": [[4, 8], np.array([8, 8])], "seed": range(2)}
    assert Study(name="x", axes=axes) == wanted
    assert parse_study({"axes": {name: [*map(list, v)] if name == "widths" else [*v] for name, v in axes.items()}}, "x")
    assert [run.id for run in Study(name="x", axes=axes).runs()] == [run.id for run in wanted.runs()]
    assert RunConfig(seed=np.int64(3), lr=np.float32(0.5)).id == RunConfig(seed=3, lr=0.5).id
    assert wanted.with_base(epochs=np.int64(2)) == wanted.with_base(epochs=2)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf[base]\nepochs = 3\n")
    assert as_study(tmp_path / "x.toml").base.epochs == as_study(str(tmp_path / "x.toml")).base.epochs == 3


@pytest.mark.parametrize("text", ["", "\n", "# a comment\n", "\ufeff"])
def test_an_empty_file_is_told_from_a_study(tmp_path, text):
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=r"x\.toml: is empty; begin with the axes that vary"):
        load_study(tmp_path / "x.toml")


def test_a_folder_is_told_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (".", "..", tmp_path):
        with pytest.raises(SpecError, match="is a folder; name a study's TOML file"):
            load_study(path)


RELU, NONE, ONE, TWO = {"activation": "relu"}, {"activation": "none"}, {"segments": 1}, {"segments": 2}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"between": [ONE, TWO]}, {"between": [ONE, TWO], "margin": 0.1}, True),
        ({"between": [ONE, TWO]}, {"between": [TWO, ONE]}, True),
        ({"between": [ONE, TWO]}, {"between": [ONE | RELU, TWO | RELU]}, False),
        ({"between": [RELU, NONE], "across": [ONE, TWO]}, {"between": [NONE, RELU], "across": [ONE, TWO]}, True),
        ({"between": [RELU, NONE], "across": [ONE, TWO]}, {"between": [ONE, TWO], "across": [NONE, RELU]}, True),
        ({"between": [RELU, NONE], "across": [ONE, TWO]}, {"between": [RELU, NONE]}, False),
        ({"between": [RELU, NONE], "across": "segments"}, {"between": [NONE, RELU], "across": "segments"}, True),
        ({"between": [RELU, NONE], "across": "segments"}, {"between": [NONE, RELU]}, False),
    ],
)
def test_a_comparison_counts_once_whatever_it_is_called(first, second, same):
    contrasts = [{"name": "a", **first}, {"name": "b", **second}]
    said = {"axes": {"segments": [1, 2], "activation": ["none", "relu"]}, "contrasts": contrasts}
    if same:
        assert refuse(said) == "contrasts.1: compares the same as contrasts.0 ('a'); keep one of the two"
    else:
        assert len(parse_study(said, "x").contrasts) == 2


def test_true_is_not_1_and_1_is_1_however_it_is_written():
    said = refuse({"axes": {"segments": [1, True]}})
    assert "True" in said
    assert "twice" not in said
    assert refuse({"axes": {"lr": [1, 1.0]}}) == "axes.lr: 1.0 is listed twice"


def test_an_unknown_key_is_told_the_keys_that_a_file_can_have():
    known = refuse({"zzz": 1}).partition("known are ")[2].split(", ")
    assert "import" in known
    assert not {"name", "imports", "overrides"} & set(known)
