"""Studies of networks that others wrote: their k×k convolutions get the options of the study."""

import re
import sys

import pytest
import torch
from torch import nn

from spectrum import RunConfig, SegmentedConv2d, build_model, load_model, load_study, measure_cost, run_study
from spectrum._records import SpecError
from spectrum.cli import main
from spectrum.data.images import images_of
from spectrum.design.own_modules import code_of, import_modules
from spectrum.models import NetworkOptions, named
from spectrum.models.converted import conversion_of
from spectrum.study.planning import plan_study
from spectrum.study.store import StoreError, read_plan, read_rows
from tests import networks_of_others
from tests.runs import TINY, tiny

MODULE = networks_of_others.__name__
RESNET, VGG = f"{MODULE}:resnet", f"{MODULE}:vgg"
BASE = {"width": 1.0, "epochs": 1}
SIZED = {"in_channels": 1, "image_size": 8}


@pytest.fixture(autouse=True)
def imported():
    import_modules([MODULE])


def of(model, **said):
    return tiny(base=BASE | {"model": model} | said.pop("base", {}), **said)


def test_a_function_builds_the_network_and_the_options_convert_it():
    model = build_model(RESNET, segments=4, activation="relu", norm=True, **SIZED)
    layers = [layer for layer in model.modules() if isinstance(layer, SegmentedConv2d)]
    assert [layer.segments for layer in layers] == [4] * 6
    assert all(layer.normalises for layer in layers)
    assert conversion_of(model) == {
        "replaced": [f"{block}.conv{number}" for block in (1, 2, 3) for number in (1, 2)],
        "left": {"0": "1 input channels, below least_channels=16"},
    }
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert conversion_of(build_model("probe")) is None
    bare = build_model(RESNET, segments=4, **SIZED)
    assert not any(layer.normalises for layer in bare.modules() if isinstance(layer, SegmentedConv2d))


def test_one_plain_segment_is_the_network_as_it_is():
    torch.manual_seed(0)
    model = build_model(VGG, segments=1, pointwise=False, **SIZED)
    plain = networks_of_others.vgg(10, 1, 8)
    assert measure_cost(model, (1, 8, 8)).macs == measure_cost(plain, (1, 8, 8)).macs
    for ours, theirs in zip(model, plain, strict=True):
        if isinstance(ours, SegmentedConv2d):
            theirs.load_state_dict({"weight": ours.spatial.weights[0], "bias": ours.bias})
        elif isinstance(ours, nn.Conv2d | nn.Linear):
            theirs.load_state_dict(ours.state_dict())
    x_nchw = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(x_nchw), plain(x_nchw))


def test_a_layer_with_fewer_channels_takes_one_segment_per_channel_and_is_counted(study_folder):
    (one,) = plan_study(of(RESNET, axes={"segments": [32]}))
    assert one.realised_segments == (16, 16, 16, 16, 32, 32)
    assert one.clamped_layers == 4
    with pytest.raises(SpecError, match=r"segments = 33: no layer of .* has so many channels; the widest has 32"):
        plan_study(of(RESNET, axes={"segments": [33]}))


@pytest.mark.parametrize("segments", [1, 4, "per_channel"])
def test_costs_are_counted_as_for_our_own(study_folder, segments):
    (one,) = plan_study(of(RESNET, axes={"segments": [segments]}))
    cost = measure_cost(build_model(RESNET, segments=segments, **SIZED), (1, 8, 8))
    assert (one.params, one.macs) == (cost.params, cost.macs)
    trunk = networks_of_others.resnet(10, 1)
    by_hand = sum(p.numel() for p in trunk.parameters())
    for layer in (module for module in trunk.modules() if isinstance(module, nn.Conv2d)):
        if layer.kernel_size == (3, 3) and layer.in_channels >= 16:
            c, k = layer.in_channels, layer.out_channels
            count = {1: 1, 4: 4, "per_channel": k}[segments]
            by_hand += c * k + 9 * k * k // count - 9 * c * k
    assert one.params == by_hand


@pytest.mark.parametrize("model", [RESNET, VGG])
def test_a_study_is_trained_here_and_its_rows_say_what_was_replaced(study_folder, model):
    study = of(model, axes={"segments": [1, 4]})
    summary = run_study(study, "out", workers=1, device="cpu", keep_weights=True)
    assert (summary.trained, summary.failed) == (2, 0)
    for row in read_rows(study_folder / "out"):
        assert row["model"] == model
        assert len(row["realised_segments"]) == len(row["provenance"]["conversion"]["replaced"])
        assert list(row["provenance"]["conversion"]["left"].values()) == ["1 input channels, below least_channels=16"]
        assert re.fullmatch("[0-9a-f]{16}", row["provenance"]["model_code"])
        loaded = load_model(row["id"], "out")
        images = images_of(loaded.run)
        with torch.inference_mode():
            right = (loaded(images.test_x).argmax(1) == images.test_y).float().mean()
        assert float(right) == pytest.approx(row["test_accuracy"])
    assert run_study(study, "out").reused == 2


@pytest.mark.medium
def test_a_study_file_beside_its_module_is_trained_by_worker_processes(study_folder, monkeypatch):
    (study_folder / "files").mkdir()
    (study_folder / "files" / "my_net.py").write_text(
        "from tests.networks_of_others import resnet\n\ndef small(num_classes, in_channels):\n"
        "    return resnet(num_classes, in_channels)\n"
    )
    base = "".join(f"{name} = {value!r}\n" for name, value in (TINY | BASE).items())
    path = study_folder / "files" / "mine.toml"
    path.write_text(f'[base]\nmodel = "my_net:small"\n{base}[axes]\nsegments = [1, 4]\n')
    summary = run_study(load_study(path), "out", workers=2, device="cpu")
    assert (summary.trained, summary.failed) == (2, 0)
    alone = run_study(of(RESNET, axes={"segments": [1, 4]}), "same", workers=2, device="cpu")
    first, second = (
        {row["segments"]: row["weights_sha256"] for row in read_rows(one.folder)} for one in (summary, alone)
    )
    assert first == second
    assert main(["status", "out"]) == 0


def test_ids_and_hashes_are_of_the_name_and_the_options():
    run = RunConfig(model=RESNET, segments=4)
    assert run.id == RunConfig(model=RESNET, segments=4, epochs=8).id == "dbc32d1582335c10"
    assert run.id != RunConfig(model=VGG, segments=4).id
    assert of(RESNET, axes={"segments": [4]}).hash == "58e177bf8b01e9e7"


@pytest.mark.parametrize("match", ["params", "macs"])
def test_a_budget_is_met_by_inner_widths_and_the_trunk_stays(study_folder, match):
    budget = {"match": match, "reference": {"segments": 1, "pointwise": False}}
    study = of(RESNET, axes={"segments": [2, 4]}, budget=budget)
    for one in plan_study(study):
        assert abs(one.mismatch) <= 0.01
        model = build_model(RESNET, segments=one.run.segments, widths=one.run.widths, **SIZED)
        assert getattr(measure_cost(model, (1, 8, 8)), match) == getattr(one, match)
        assert [layer.mid_channels for layer in model.modules() if isinstance(layer, SegmentedConv2d)] == [
            *[one.run.widths[0]] * 4,
            *[one.run.widths[1]] * 2,
        ]
        assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_width_is_a_factor_of_the_inner_widths(study_folder):
    narrow, usual = (build_model(RESNET, segments=2, width=width, **SIZED) for width in (0.5, 1.0))
    for ours, theirs in zip(narrow.modules(), usual.modules(), strict=True):
        if isinstance(ours, SegmentedConv2d):
            assert 2 * ours.mid_channels == theirs.mid_channels
    with pytest.raises(ValueError, match=r"width: .* keeps its own widths; only the channels between"):
        build_model(RESNET, segments=2, width=0.5, pointwise=False, **SIZED)
    budget = {"match": "params", "reference": {"segments": 1}}
    with pytest.raises(SpecError, match=r"budget: .* with pointwise = false has no channels between two convolutions"):
        plan_study(of(RESNET, axes={"segments": [2, 4]}, base={"pointwise": False}, budget=budget))


@pytest.mark.parametrize(
    ("option", "value"),
    [("depth", 2), ("residual", False), ("dropout", 0.5), ("pointwise_segments", 2), ("stage_segments", [2, 4])],
)
def test_options_that_it_cannot_take_are_refused(study_folder, option, value):
    axes = {"seed": [0]} if option == "stage_segments" else {"segments": [2]}
    with pytest.raises(SpecError, match=f"{option}: .*'{RESNET}' does not use it; leave it out"):
        plan_study(of(RESNET, base={option: value}, axes=axes))
    with pytest.raises(ValueError, match=f"{option}: the architecture '{RESNET}' does not use it"):
        build_model(RESNET, NetworkOptions(**{option: tuple(value) if isinstance(value, list) else value}))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere:net", "model = nowhere: no such module in the current folder"),
        (f"{MODULE}:net", f"module {MODULE} has no net; name a function in it"),
        ("torchvision:resnet18", "torchvision is not installed; pip install torchvision"),
        ("timm:resnet18", "timm is not installed; pip install timm"),
        ("__main__:net", "put the function into a module"),
        ("a b:net", "unknown"),
    ],
)
def test_a_model_that_cannot_be_found_is_refused_with_the_study(monkeypatch, model, said):
    monkeypatch.setattr("spectrum.design.own_modules.find_spec", lambda name: None)
    with pytest.raises(SpecError, match=re.escape(said)):
        of(model, axes={"segments": [2]})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("of_a_thousand_classes", "gives a tensor of shape (2, 1000) for 2 images of 10 classes"),
        ("of_depthwise", "no k×k convolution can be replaced (1: grouped already, groups=16)"),
        ("broken", "its function fails: KeyError: 'weights'"),
        ("nothing", "its function returned NoneType; return a torch.nn.Module"),
        ("NUMBER", "is a int; give the name of a function"),
        ("resnet18", "module tests.networks_of_others has no resnet18"),
    ],
)
def test_a_function_that_returns_no_such_network_is_refused_by_the_plan(study_folder, model, said):
    with pytest.raises(SpecError, match=re.escape(said)):
        plan_study(of(f"{MODULE}:{model}", axes={"segments": [2]}))


def test_a_plan_says_what_is_replaced(study_folder, capsys):
    (study_folder / "s.toml").write_text(
        f'[base]\nmodel = "{RESNET}"\nepochs = 1\ntrain_images = 100\n[axes]\nsegments = [1, 4]\n'
    )
    assert main(["plan", "s.toml"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "6 of 7 k×k convolutions are replaced (not 0: 1 input channels, below least_channels=16)." in out


def test_a_name_in_a_results_file_is_never_imported_by_itself(study_folder, monkeypatch):
    run_study(of(RESNET, axes={"segments": [2]}), "out", workers=1, device="cpu", keep_weights=True)
    (row,) = read_rows(study_folder / "out")
    assert MODULE in read_plan("out").imports
    monkeypatch.setattr(named, "_permitted", set())
    with pytest.raises(StoreError, match=rf"name its module by import .* or by imports=\['{MODULE}'\] in Python"):
        load_model(row["id"], "out")
    with pytest.raises(ValueError, match="model='os:getcwd': name its module by import"):
        build_model("os:getcwd", segments=2)
    assert load_model(row["id"], "out", imports=[MODULE])


class Library:
    """What a study asks of torchvision or timm."""

    def list_models(self):
        return ["resnet18", "vgg11"]

    def get_model(self, name, *, num_classes):
        assert name == "resnet18"
        return networks_of_others.resnet(num_classes)

    def create_model(self, name, *, num_classes, in_chans):
        assert name == "resnet18"
        return networks_of_others.resnet(num_classes, in_chans)


@pytest.fixture
def libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", Library())
    monkeypatch.setitem(sys.modules, "torchvision", Library())
    monkeypatch.setitem(sys.modules, "torchvision.models", Library())


@pytest.mark.parametrize(("library", "channels"), [("timm", 1), ("timm", 3), ("torchvision", 3)])
def test_a_library_gets_the_classes_and_channels_of_the_images(libraries, library, channels):
    model = build_model(f"{library}:resnet18", segments=4, in_channels=channels, image_size=8, num_classes=7)
    assert model(torch.zeros(2, channels, 8, 8)).shape == (2, 7)
    assert len(conversion_of(model)["replaced"]) == 6


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("torchvision:resnet18", "torchvision's networks take images of 3 channels, and these have 1; use timm, or"),
        ("torchvision:resnet81", "torchvision has no such model; did you mean 'resnet18'?"),
        ("timm:qqq", "timm has no such model"),
    ],
)
def test_what_a_library_does_not_have_is_refused(libraries, model, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        build_model(model, segments=2, **SIZED)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("no", name="timm"), "timm is not installed; pip install timm"),
        (RuntimeError("operator x does not exist"), "timm cannot be imported: RuntimeError: operator x does not exist"),
    ],
)
def test_a_library_that_cannot_be_imported_is_refused_in_a_sentence(monkeypatch, error, said):
    def fails(name):
        raise error

    monkeypatch.setattr("spectrum.models.converted.import_module", fails)
    with pytest.raises(ValueError, match=re.escape(said)):
        build_model("timm:resnet18", segments=2, **SIZED)


def test_the_version_of_a_library_stands_for_its_code(monkeypatch):
    monkeypatch.setattr(named, "version", lambda name: "1.2.3")
    assert code_of("timm:resnet18") == "timm 1.2.3"
    assert code_of("probe") is None
