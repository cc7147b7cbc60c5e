"""Every counter's difference to `measure_cost` is accounted for to the last MAC, by rules and not by the difference."""

import math
import sys
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import flop_registry, shape_wrapper

from spectrum import SegmentedConv2d, build_model, measure_cost
from spectrum.cost.audit import as_prose, as_rows, audit
from spectrum.cost.counters import TORCH, TORCH_BOTH, counts_segments_of_gradients_too_often

COUNTERS = ("spectrum", "fvcore", TORCH, TORCH_BOTH, "ptflops aten", "ptflops pytorch", "thop", "torchinfo")
OTHERS = {"fvcore": 1, "ptflops": 2, "thop": 1, "torchinfo": 1}  # counters a package has
SHAPE = (3, 17, 14)


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


def common_layers():
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.GroupNorm(3, 12), nn.GELU(), nn.AvgPool2d(2)),
        *(nn.BatchNorm2d(12, affine=False), nn.PReLU(), nn.BatchNorm2d(12, track_running_stats=False), nn.SiLU()),
        *(nn.InstanceNorm2d(12), nn.LeakyReLU(), nn.AdaptiveAvgPool2d((3, 5)), nn.ReLU6(), nn.AdaptiveMaxPool2d(2)),
        *(nn.Softmax(1), nn.Dropout(), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 6, bias=False)),
        *(nn.ELU(inplace=True), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 4)),
    )


class Convolution(nn.Conv2d):
    """A class that no counter's table has."""


class Twice(nn.Module):
    """A module that is called twice, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.unused = Convolution(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(5, 5)
        self.norm, self.head = nn.BatchNorm2d(6), SegmentedConv2d(6, 6, segments=[1, 2, 3], bias=True)

    def forward(self, x_nchw):
        x_nchw = self.norm(self.body(self.stem(x_nchw)))
        return self.head(self.norm(self.body(x_nchw)))


def frozen():
    model = plain()
    model[4].weight.requires_grad_(False)
    return model


NETWORKS = {"plain": plain, "common layers": common_layers, "twice": Twice, "frozen": frozen}
PROBES = [
    {"segments": segments, "activation": activation, "order": order}
    for segments in (1, 3, 8, "per_channel")
    for activation in ("elu", "relu")
    for order in ("pointwise_first", "spatial_first")
]
NAMED = {" ".join(str(value) for value in probe.values()): probe for probe in PROBES}


@cache
def network(name):
    if name in NETWORKS:
        return NETWORKS[name]()
    return build_model("probe", norm=True, image_size=14, **NAMED[name])


@cache
def readings(name):
    return {reading.counter: reading for reading in audit(network(name), SHAPE).readings}


def reading_of(name, model, shape=SHAPE):
    return next(reading for reading in audit(model, shape).readings if reading.counter == name)


@pytest.mark.medium
@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("name", [*NAMED, *NETWORKS])
def test_nothing_is_left_unexplained(name, counter):
    reading = readings(name)[counter]
    if reading.version is None:
        pytest.skip(reading.problem)
    assert reading.problem is None
    assert reading.macs * reading.per_mac == reading.figure
    assert reading.difference == reading.macs - reading.ours
    assert reading.unexplained == 0
    assert all(reason.macs for reason in reading.reasons)


def test_readings_come_in_order_and_ours_is_the_cost():
    audited = audit(network("plain"), SHAPE)
    assert tuple(reading.counter for reading in audited.readings) == COUNTERS
    assert audited.cost == measure_cost(network("plain"), SHAPE)
    assert audited.readings[0].figure == audited.cost.macs
    assert audited.readings[0].params == audited.cost.params


@pytest.mark.parametrize("segments", [1, 2, 8, 64])
def test_the_group_error_is_the_weight_gradient_once_more_a_further_segment(segments):
    model = nn.Conv2d(64, 64, 3, padding=1, groups=segments)
    macs = 64 * (64 // segments) * 9 * 5 * 4
    reading = reading_of(TORCH_BOTH, model, (64, 5, 4))
    assert reading.ours == 2 * macs
    assert reading.figure == 2 * (macs + segments * macs)
    assert sum(reason.macs for reason in reading.reasons) == (segments - 1) * macs
    assert [reason.name for reason in reading.reasons] == ["group error"] * (segments > 1)


def test_reasons_follow_from_the_layers():
    numbers, last = 17 * 14, 6 * 5  # of a channel, before the pool and before the average
    reasons = {
        counter: {reason.name: reason.macs for reason in reading.reasons}
        for counter, reading in readings("plain").items()
    }
    biases = 8 * numbers + 12 * last + 10
    assert reasons["fvcore"] == {"BN at 2 per value": 2 * 8 * numbers, "AdaptiveAvgPool2d at 1 per value": 12 * last}
    assert reasons[TORCH] == {}
    assert reasons[TORCH_BOTH] == {"group error": 3 * 12 * 2 * 9 * last}
    if "ptflops" in sys.modules:
        assert reasons["ptflops aten"] == {"biases": biases}
        assert reasons["ptflops pytorch"]["ReLU at 2 per value"] == 2 * 8 * numbers
        assert reasons["ptflops pytorch"]["MaxPool2d at 2 per value"] == 2 * 8 * numbers
    if "thop" in sys.modules:
        assert reasons["thop"]["BN at 4 per value"] == 4 * 8 * numbers
        assert reasons["thop"]["AdaptiveAvgPool2d at its window + 1 per output"] == 12 * (last + 1)
    if "torchinfo" in sys.modules:
        assert reasons["torchinfo"] == {"parameters of BN": 16, "biases": biases}


def test_counters_that_hook_modules_do_not_see_the_segments():
    cost = measure_cost(network("8 elu pointwise_first"), SHAPE)
    halves = sum(layer.macs for layer in cost.layers if layer.kind == "GroupedConv2d")
    for counter in ("ptflops pytorch", "thop", "torchinfo"):
        reading = readings("8 elu pointwise_first")[counter]
        if reading.version is not None:
            assert {reason.name: reason.macs for reason in reading.reasons}["GroupedConv2d not seen"] == -halves


def test_what_no_rule_knows_is_left_over():
    class Pools(nn.Module):
        def forward(self, x_nchw):
            return F.adaptive_avg_pool2d(x_nchw, 1)

    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), Pools())
    audited = audit(model, (3, 5, 5))
    assert audited.readings[1].unexplained == 100
    assert as_rows(audited)[1][1][1:] == ["400 flops = MACs", "400", "+100", "unexplained +100"]


@pytest.mark.parametrize("package", OTHERS)
def test_a_counter_that_is_not_installed_says_so(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    audited = audit(network("plain"), SHAPE)
    absent = [reading for reading in audited.readings if reading.counter.startswith(package)]
    assert len(absent) == OTHERS[package]
    for reading in absent:
        assert (reading.version, reading.figure, reading.macs, reading.difference) == (None, None, None, None)
        assert reading.unexplained is None
        assert "not installed" in reading.problem
    row = next(row for row in as_rows(audited)[1] if row[0].startswith(package))
    assert row[1:4] == ["", "", ""]
    assert "not installed" in row[4]


class Fussy(nn.Module):
    """A network that some counters cannot run, with outputs by name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x_nchw):
        if not torch.is_grad_enabled():
            raise ValueError("wants gradients\nalways")
        if hasattr(self, "__batch_counter__"):
            raise ValueError("wants no counter")
        return {"maps": self.conv(x_nchw), "nothing": None}


def test_a_counter_that_fails_says_so():
    audited = audit(Fussy(), SHAPE)
    problems = {reading.counter: reading.problem for reading in audited.readings if reading.version}
    assert problems["spectrum"] is problems[TORCH] is problems[TORCH_BOTH] is None
    for counter in {"thop", "torchinfo"} & problems.keys():
        assert problems[counter] == "failed: ValueError: wants gradients"
    if "ptflops pytorch" in problems:
        assert problems["ptflops aten"] is None
        assert problems["ptflops pytorch"].startswith("failed: ")
        assert "wants no counter" in problems["ptflops pytorch"]
    assert as_prose(audited).startswith("Forward + backward is 2.000 × forward: 3 minus")


class Words(nn.Module):
    """A network of words, with a mask by name."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3, bias=False)

    def forward(self, words, mask=None):
        x = self.words(words)
        return (self.head(x if mask is None else x * mask), None)


WORDS = torch.zeros(2, 5, dtype=torch.long)


@pytest.mark.parametrize("inputs", [WORDS, (WORDS,), {"words": WORDS}, (WORDS, torch.ones(2, 5, 1))])
def test_odd_inputs_are_counted_by_all_that_take_them(inputs):
    audited = audit(Words(), example_inputs=inputs)
    assert audited.cost.macs == 2 * 5 * 12
    found = {reading.counter: reading for reading in audited.readings if reading.version is not None}
    assert {name for name, reading in found.items() if reading.unexplained == 0} >= {"spectrum", TORCH, TORCH_BOTH}
    for reading in found.values():
        refused = reading.problem is not None and "give " in reading.problem
        assert reading.unexplained == 0 or refused, reading


def fixed(gradient, x, weight, biases, stride, padding, dilation, transposed, *rest, out_shape=None):
    """FLOPs of a convolution's gradients, segments and all."""
    of_x, of_weight, _ = rest[-1]
    return 2 * (of_x + of_weight) * math.prod(x if transposed else gradient) * math.prod(weight[1:])


@pytest.mark.parametrize("name", ["plain", "8 elu pointwise_first", "frozen", "twice"])
def test_a_torch_without_the_group_error_gets_no_such_reason(name, monkeypatch):
    formula = shape_wrapper(fixed)
    monkeypatch.setitem(flop_registry, torch.ops.aten.convolution_backward, formula)
    assert not counts_segments_of_gradients_too_often()
    reading = reading_of(TORCH_BOTH, network(name))
    assert (reading.reasons, reading.unexplained, reading.difference) == ((), 0, 0)


def test_this_torch_has_the_group_error():
    assert counts_segments_of_gradients_too_often()


@pytest.mark.parametrize("transposed", [False, True])
def test_the_group_error_is_that_of_weights_whose_gradient_runs(transposed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(kind(4, 4, 3, groups=2), kind(4, 4, 3, groups=4), Detached(), kind(4, 4, 1, groups=2))
    reading = reading_of(TORCH_BOTH, model, (4, 9, 9))
    last = next(layer for layer in audit(model, (4, 9, 9)).cost.layers if layer.name == "3")
    assert [(reason.name, reason.macs) for reason in reading.reasons] == [("group error", last.macs)]
    assert reading.unexplained == 0


class Detached(nn.Module):
    def forward(self, x_nchw):
        return x_nchw.detach()


def test_prose_gives_no_reason_that_is_untrue():
    model = plain()
    model[0].requires_grad_(False)
    assert ": 3 minus the gradients that are not needed; " in as_prose(audit(model, SHAPE))


def test_the_network_is_left_as_it_was(capfd):
    model = build_model("probe", norm=True, segments=8, image_size=14).train()
    model.stem.eval()
    called = []
    model.stem[0].register_forward_pre_hook(lambda *_: called.append(1))
    functions = {name: getattr(F, name) for name in dir(F)}

    def look():
        modules = dict(model.named_modules())
        hooks = {
            name: {key: len(value) for key, value in vars(module).items() if "hooks" in key and value is not None}
            for name, module in modules.items()
        }
        names = {name: sorted(vars(module)) for name, module in modules.items()}
        modes = {name: module.training for name, module in modules.items()}
        grads = [parameter.grad for parameter in model.parameters()]
        return hooks, names, modes, [name for name, _ in model.named_buffers()], grads

    before, state = look(), {name: value.clone() for name, value in model.state_dict().items()}
    audit(model, SHAPE)
    assert look() == before
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: getattr(F, name) for name in dir(F)} == functions
    assert capfd.readouterr() == ("", "")


def test_rows_say_figure_unit_difference_and_reasons():
    audited = audit(network("plain"), SHAPE)
    titles, rows = as_rows(audited)
    assert titles == ["counter", "figure", "as MACs", "difference", "reasons"]
    assert all(len(row) == len(titles) for row in rows)
    both = rows[COUNTERS.index(TORCH_BOTH)]
    error = 3 * 12 * 2 * 9 * 30
    assert both[0].startswith(f"{TORCH_BOTH} ({torch.__version__}")
    assert both[1].endswith(" FLOPs = 2 × MACs")
    assert both[3:] == [f"+{error:,}", f"group error +{error:,}"]
    unseen = as_rows(audit(network("8 elu pointwise_first"), SHAPE))[1][COUNTERS.index("ptflops pytorch")]
    assert "GroupedConv2d not seen −" in unseen[4] or "not installed" in unseen[4]


def test_prose_sets_torchs_ratio_beside_ours():
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 1, groups=4, bias=False))
    line = as_prose(audit(model, (3, 4, 4)))  # 24 and 16 MACs a pixel
    assert line.startswith("Forward + backward is 2.400 × forward: 3 minus")
    assert line.endswith("torch's counter gives 3.600 ×.")
    assert as_prose(audit(nn.Sequential(nn.ReLU()), SHAPE)).startswith("The network has no")


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match="input_shape"):
        audit(network("plain"), (3, 0, 14))
