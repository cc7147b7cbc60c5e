"""Options without effect are refused, and configurations that train the same network are reported, before a run."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectrum import RunConfig, read_plan, register_model, run_study
from spectrum._records import SpecError
from spectrum.data.images import images_of
from spectrum.design.changes import choices
from spectrum.design.effects import check_effects
from spectrum.design.options import without_effect
from spectrum.design.study_file import parse_study
from spectrum.models.blocks import segmented
from spectrum.models.families import FAMILIES
from spectrum.study.equal_networks import coincidences
from spectrum.study.planning import plan_study
from spectrum.training.loop import train
from tests.plans import plan_of
from tests.registries import restored

TINY = {"dataset": "digits", "train_images": 100, "batch_size": 50, "epochs": 2}


def study(base=(), **said):
    return parse_study({"base": TINY | dict(base), **said}, "x")


def told(said):
    return coincidences(said, plan_study(said))


def refused(said):
    with pytest.raises(SpecError) as caught:
        plan_study(said)
    return str(caught.value)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"base": {"decay": 0.5}}, 'base.decay: schedule = "cosine" does not use it; leave it out, or set'),
        ({"base": {"decay": 0.94}}, "base.decay: "),  # named, though it is the default
        ({"base": {"decay_epochs": 1.0, "schedule": "one_cycle"}}, 'base.decay_epochs: schedule = "one_cycle"'),
        ({"base": {"decay_images": 100}}, "base.decay_images: "),
        (
            {"base": {"schedule": "exponential", "decay_images": 9, "decay_epochs": 1.0}},
            "base.decay_epochs: decay_images is used instead; keep one of the two",
        ),
        ({"base": {"optimizer": "adamw", "nesterov": True}}, 'base.nesterov: optimizer = "adamw" does not use it'),
        ({"base": {"momentum": 0.0, "nesterov": True}}, "base.nesterov: has no effect without momentum"),
        ({"axes": {"nesterov": [False, True]}, "base": {"optimizer": "rmsprop"}}, "axes.nesterov: optimizer ="),
        ({"axes": {"decay": [0.5, 0.9]}}, "axes.decay: "),
        ({"cases": [{"decay": 0.5}, {"schedule": "exponential"}]}, "cases.0.decay: "),
        ({"base": {"resize": "stretch"}}, "base.resize: needs an image_size"),
        ({"base": {"model": "vgg", "residual": True}}, "base.residual: 'vgg' does not use it; leave it out"),
        ({"base": {"model": "inception", "order": "pointwise_first"}}, "base.order: 'inception' does not use it"),
        (
            {"base": {"activation": "relu"}, "axes": {"activation": ["none", "gelu"]}},
            "base.activation: has no effect, since axes.activation replaces it in every run; keep one of the two",
        ),
        ({"base": {"seed": 0}, "axes": {"seed": [1, 2]}}, "base.seed: has no effect, since axes.seed replaces it"),
        ({"base": {"segments": 4}, "axes": {"segment_width": [1, 4]}}, "base.segments: has no effect, since axes.segm"),
        ({"base": {"depth": 2}, "cases": [{"depth": 1}, {"depth": 3}]}, "base.depth: has no effect, since [[cases]]"),
        (
            {"base": {"segments": 1}, "axes": {"segments": [1, 4]}}
            | {"budget": {"match": "macs", "reference": {"segments": 4}}},
            "base.segments: has no effect, since axes.segments replaces it",
        ),
        (
            {"base": {"lr": 0.1}, "tune": {"lr": [0.1, 0.2]}},
            "base.lr: [tune] replaces it by the values of the sweep; leave it out",
        ),
    ],
)
def test_an_option_without_a_use_is_refused(said, says, tmp_path):
    assert says in refused(study(**said))
    with pytest.raises(SpecError) as caught:
        run_study(study(**said), tmp_path / "x")
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_override_without_a_use_is_refused_by_its_name():
    assert refused(study().with_base(decay=0.5)).startswith("decay: schedule")


@pytest.mark.parametrize(
    "said",
    [
        {"base": {"decay": 0.5}, "axes": {"schedule": ["cosine", "exponential"]}},
        {"base": {"nesterov": False}, "cases": [{"optimizer": "adamw", "lr": 0.001}, {"optimizer": "sgd"}]},
        {"base": {"nesterov": False, "optimizer": "adamw"}},  # which is so
        {"base": {"label_noise": 0.0}},
        {"base": {"recipe": "jft", "schedule": "cosine"}},  # nobody has named a decay
        {"base": {"model": "vgg", "activation": "none", "image_size": 32}},
        {"base": {"activation": "relu"}, "cases": [{"activation": "none"}, {"segments": 4}]},
        {"base": {"segments": 4}, "axes": {"segments": [1, 4]}, "budget": {"match": "macs", "reference": {"depth": 1}}},
    ],
)
def test_an_option_that_one_run_uses_or_that_is_off_is_taken(said):
    check_effects(study(**said))


@pytest.mark.medium
@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(choices("schedule")),
    st.sampled_from(choices("optimizer")),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([None, 20]),
    st.data(),
)
def test_a_field_is_called_unused_just_where_it_changes_no_weight(schedule, optimizer, momentum, images, data):
    rest = {"epochs": 1, "train_images": 60, "batch_size": 20, "widths": (2,), "lr": 0.01, "decay_epochs": 0.3}
    said = {"schedule": schedule, "optimizer": optimizer, "momentum": momentum, "decay_images": images}
    field, values = data.draw(
        st.sampled_from(
            [
                ("decay", (0.5, 0.9)),
                ("decay_epochs", (0.3, 0.7)),
                ("decay_images", (20, 40)),
                ("nesterov", (True, False)),
            ]
        )
    )
    runs = [RunConfig(**TINY | rest | said | {field: value}) for value in values]
    hashes = {train(run, images_of(run)).weights_sha256 for run in runs}
    assert (field in without_effect(dict(runs[0]))) == (len(hashes) == 1)


def test_a_plan_that_is_frozen_is_read_as_it_is():
    said = study({"decay": 0.5})
    run = said.runs()[0]
    kept = plan_study(study({"schedule": "exponential", "decay": 0.5}))[0].record().entry()
    entry = kept | {"id": run.id, "asked": run.id, "point": run.model_dump(mode="json", exclude_defaults=True)}
    (planned,) = plan_study(said, frozen=plan_of({"hash": said.hash, "points": [entry]}))
    assert planned.run == run


# Checks that need the networks


@pytest.mark.medium
@pytest.mark.parametrize(
    ("said", "says"),
    [
        (
            {"axes": {"segments": [1, 128, "per_channel"]}},
            "segments = 128 and segments = per_channel train the same network; one of the two is enough",
        ),
        (
            {
                "axes": {"stage_segments": [[1, 128, 128], [1, 64, 200], [1, 2, 4]], "seed": [0, 1]},
                "base": {"widths": [8, 16, 32]},
            },
            "stage_segments = (1, 128, 128) and stage_segments = (1, 64, 200) train the same network; "
            "one of the two is enough",
        ),
        (
            {"cases": [{"segment_width": 1}, {"segments": "per_channel"}, {"segments": 1}]},
            "segment_width = 1 and segments = per_channel train the same network; one of the two is enough",
        ),
        (
            {"axes": {"decay": [0.5, 0.9], "schedule": ["cosine", "exponential"]}},
            "decay = 0.5 and decay = 0.9 train the same network (at schedule = cosine); one of the two is enough",
        ),
        (
            {"cases": [{"image_size": 8}, {}]},
            "image_size = 8 and image_size not set train the same network; one of the two is enough",
        ),
        (
            {"axes": {"downsampling": ["pool", "stride"], "widths": [[4], [4, 4]]}},
            "downsampling = pool and downsampling = stride train the same network (at widths = (4,)); "
            "one of the two is enough",
        ),
    ],
)
def test_two_configurations_of_one_network_are_told(said, says):
    assert told(study(**said)) == [says]


@pytest.mark.medium
@pytest.mark.parametrize(
    "axes",
    [
        {"order": ["pointwise_first", "spatial_first"], "segments": [1, "per_channel"]},
        {"activation": ["none", "relu", "gelu"]},
        {"dropout": [0.0, 0.1, 0.5]},
        {"norm_eps": [1e-5, 1e-3]},
        {"norm_momentum": [0.1, 0.2]},
        {"lr": [0.1, 0.2], "seed": [0, 1]},
    ],
)
def test_networks_that_differ_in_anything_are_told_apart(axes):
    assert told(study({"widths": [4, 8]}, axes=axes)) == []


@pytest.mark.slow
def test_what_is_told_trains_to_the_same_weights(tmp_path):
    said = study({"widths": [4, 8]}, axes={"segments": [1, 8, "per_channel"], "seed": [0, 1]})
    notes: list[str] = []
    run_study(said, tmp_path, workers=1, device="cpu", on_note=notes.append)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert notes == ["segments = 8 and segments = per_channel train the same network; one of the two is enough"]
    assert len({row["weights_sha256"] for row in rows}) == 4
    assert [run.same_as is not None for run in read_plan(tmp_path).runs] == [
        False, False, True, False, False, True,
    ]  # fmt: skip
    notes.clear()
    run_study(said, tmp_path, workers=1, device="cpu", on_note=notes.append)
    assert not notes, "nothing is left to train"


class Flat(nn.Module):
    """A classifier of pixels that ignores all options; a function changes its output."""

    def __init__(self, arch, after=lambda scores_nk: scores_nk):
        super().__init__()
        self.classifier = nn.Linear(arch.in_channels * arch.image_size**2, arch.num_classes)
        self.after = after

    def forward(self, x_nchw):
        return self.after(self.classifier(x_nchw.flatten(1)))


@pytest.fixture
def own(monkeypatch):
    """Registers an architecture for the duration of a test, and returns its name."""
    restored(monkeypatch, FAMILIES)

    def register(builder, **more):
        register_model("own", builder, **more)
        return "own"

    return register


def test_an_axis_that_a_family_of_ones_own_ignores_is_refused(own):
    orders = {"order": ["pointwise_first", "spatial_first"], "seed": [0, 1]}
    said = refused(study({"model": own(Flat)}, axes=orders))
    assert said == (
        "axes.order: has no effect: 'pointwise_first' and 'spatial_first' train the same network; "
        "leave the axis out, or let the builder of 'own' use arch.order"
    )


@pytest.mark.parametrize(
    "named",
    [
        {"order": "spatial_first"},
        {"order": "pointwise_first"},
        {"segments": 4},
        {"segment_width": 1},
        {"width": 0.5},
        {"dropout": 0.5},
        {"hidden": [4]},
        {"norm_eps": 1e-3},
    ],
)
def test_an_option_that_a_family_of_ones_own_ignores_is_refused(own, named):
    (field,) = named
    assert f"base.{field}: has no effect on 'own'" in refused(study({"model": own(Flat), **named}))
    del FAMILIES._entries["own"]
    name = own(Flat, uses=())
    (value,) = named.values()
    axis = study({"model": name}, axes={field: [value]})
    assert f"axes.{field}: 'own' does not use it; leave it out" in refused(axis)


def test_an_option_that_a_family_of_ones_own_uses_is_taken_also_where_it_says_the_default(own):
    def small(arch):
        return nn.Sequential(
            segmented(arch, arch.in_channels, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, arch.num_classes)
        )

    name = own(small)
    for named in ({"segments": 8}, {"segment_width": 1}, {"order": "pointwise_first"}, {"activation": "none"}):
        plan_study(study({"model": name, **named}))
    del FAMILIES._entries["own"]
    plan_study(study({"model": own(small, uses=("segments", "order")), "segments": 8, "order": "pointwise_first"}))


def test_fields_that_a_family_uses_are_fields():
    with pytest.raises(ValueError, match="uses='segmets': no option of a network; did you mean 'segments'"):
        register_model("never", Flat, uses=["segmets"])


@pytest.mark.parametrize(
    ("builder", "says"),
    [
        (lambda arch: Flat(arch, lambda y: (y, y)), "gives a tuple of 2 for 2 images of 10 classes; return one tensor"),
        (lambda arch: Flat(arch, lambda y: {"logits": y}), "gives an object of type dict for 2 images of 10 classes"),
        (lambda arch: Flat(arch, lambda y: None), "gives an object of type NoneType"),
        (lambda arch: Flat(arch, lambda y: torch.cat([y, y], 1)), "gives a tensor of shape (2, 20) for 2 images of 10"),
        (lambda arch: Flat(arch, lambda y: y[:, :3]), "gives a tensor of shape (2, 3) for 2 images of 10 classes"),
        (lambda arch: Flat(arch, lambda y: y.sum(1)), "gives a tensor of shape (2,) for 2 images"),
        (lambda arch: Flat(arch, lambda y: y * float("nan")), "gives NaN or infinite scores before any training"),
        (lambda arch: Flat(arch, lambda y: y.long()), "gives scores of type torch.int64; return floating-point ones"),
        (lambda arch: Flat(arch, lambda y: y[:, 99]), "its forward pass fails on images (2, 1, 8, 8): IndexError"),
        (lambda arch: Flat(arch, lambda y: {}["y"]), "its forward pass fails on images (2, 1, 8, 8): KeyError: 'y'"),
        (lambda arch: nn.Flatten(), "has no parameters to train"),
        (lambda arch: Flat(arch).requires_grad_(False), "has no parameters to train"),
        (lambda arch: None, "its builder returned NoneType; return a torch.nn.Module"),
        (lambda arch: arch.wdth, "its builder fails: AttributeError"),
        (lambda arch: {}["wide"], "its builder fails: KeyError: 'wide'"),
    ],
)
def test_a_faulty_network_of_ones_own_is_named_before_anything_is_trained(own, builder, says, tmp_path):
    said = study({"model": own(builder)})
    assert refused(said).startswith("model = 'own'")
    assert says in refused(said)
    with pytest.raises(SpecError, match="model = 'own'"):
        run_study(said, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_network_that_fails_in_training_is_named_by_a_plan_that_times_it(own):
    class Failing(Flat):
        def forward(self, x_nchw):
            if self.training:
                raise OSError("no such layer")
            return super().forward(x_nchw)

    said = study({"model": own(Failing)})
    plan_study(said)
    with pytest.raises(SpecError, match="model = 'own': a training step fails: OSError: no such layer"):
        plan_study(said, time_steps=True)
