"""Plans: widths solved for budgets, frozen, and what contrasts change."""

import json

import pytest
import torch
from torch import nn

from spectrum import measure_cost, models, register_model
from spectrum.conv.segmented import SegmentedConv2d
from spectrum.cost.budget import keeps_ratios
from spectrum.models.probe import WIDTHS
from spectrum.study.contrasts import examine
from spectrum.study.images import images_of
from spectrum.study.planning import _build, from_entry, plan_study
from spectrum.study.point import Point, SpecError
from spectrum.study.spec import parse_study

TINY = {"dataset": "digits", "train_images": 100, "batch_size": 50, "epochs": 2}
PER_CHANNEL = {"segments": "per_channel"}


def study(**said):
    base = TINY | said.pop("base", {})
    return parse_study({"base": base, "axes": {"segments": [1, 3, 16, "per_channel"]}} | said, "tiny")


def params_of(point):
    model = _build(point, images_of(point))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("match", ["params", "macs"])
def test_every_point_meets_the_budget_of_the_reference(match):
    planned = plan_study(study(budget={"match": match, "reference": PER_CHANNEL}))
    reference = planned[-1]
    assert reference.point == reference.asked, "the reference is the network that it was"
    assert reference.mismatch == 0
    for one in planned:
        model = _build(one.point, images_of(one.point))
        cost = measure_cost(model, (1, 8, 8))
        assert (cost.params, cost.macs) == (one.params, one.macs)
        assert one.mismatch == getattr(cost, match) / getattr(reference, match) - 1
        assert abs(one.mismatch) <= 0.005
        assert keeps_ratios(WIDTHS, one.point.widths or WIDTHS)
        assert one.budget == getattr(reference, match)


def test_several_budgets_are_an_axis_and_share_what_is_the_same_network():
    planned = plan_study(study(budget={"match": ["none", "params"], "reference": PER_CHANNEL}))
    assert [one.match for one in planned] == ["none"] * 4 + ["params"] * 4
    assert [one.asked for one in planned[:4]] == [one.asked for one in planned[4:]]
    assert planned[3].point.id == planned[7].point.id
    assert len({one.point.id for one in planned}) == 7
    assert [one.mismatch for one in planned[:4]] == [None] * 4


def test_a_plan_is_the_same_each_time_and_whatever_else_is_in_the_study():
    budget = {"match": "params", "reference": PER_CHANNEL}
    first = plan_study(study(budget=budget))
    again = plan_study(study(budget=budget, axes={"segments": [3], "seed": [0, 7]}))
    assert [one.point.widths for one in again] == [first[1].point.widths] * 2
    assert [one.point.seed for one in again] == [0, 7]


def test_an_axis_of_widths_has_a_budget_for_each():
    axes = {"segments": [1, "per_channel"], "width": [0.5, 1.0]}
    planned = plan_study(study(axes=axes, budget={"match": "params", "reference": PER_CHANNEL}))
    by_width = {one.asked.width: one.budget for one in planned}
    assert by_width == {width: params_of(Point(**TINY, width=width)) for width in (0.5, 1.0)}


def test_widths_of_the_base_give_the_ratios():
    budget = {"match": "params", "reference": PER_CHANNEL}
    planned = plan_study(study(base={"widths": [40, 40]}, budget=budget))
    assert [len(one.point.widths) for one in planned] == [2] * 4
    assert all(keeps_ratios((40, 40), one.point.widths) for one in planned)
    assert planned[-1].point == planned[-1].asked


def test_a_reference_may_be_a_network_that_is_not_in_the_study():
    budget = {"match": "params", "reference": {"segments": 8, "width": 0.5, "depth": 2}}
    planned = plan_study(study(budget=budget))
    assert {one.budget for one in planned} == {params_of(Point(**TINY, segments=8, width=0.5, depth=2))}


def test_what_a_plan_froze_is_taken_as_it_is(monkeypatch):
    said = study(budget={"match": "params", "reference": PER_CHANNEL})
    planned = plan_study(said)
    entries = [one.entry() for one in planned]
    entries[0]["point"]["widths"], entries[0]["mismatch"] = [8, 16, 32], 0.25
    frozen = json.loads(json.dumps({"budget": said.budget.model_dump(mode="json"), "points": entries}))
    again = plan_study(said, frozen=frozen)
    assert (again[0].point.widths, again[0].mismatch) == ((8, 16, 32), 0.25)
    assert again[0].params == params_of(again[0].point), "counted anew"
    assert again[1:] == planned[1:]
    assert plan_study(study(budget={"match": "macs", "reference": PER_CHANNEL}), frozen=frozen)[0].mismatch < 0.01


def test_an_entry_of_a_plan_gives_the_point_back():
    for one in plan_study(study(budget={"match": "macs", "reference": PER_CHANNEL})):
        assert from_entry(json.loads(json.dumps(one.entry())), one.asked) == one


@pytest.mark.slow
def test_step_times_are_matched_and_kept():
    base = {"train_images": 600, "batch_size": 64, "image_size": 28}
    said = study(
        base=base, axes={"segments": [1, "per_channel"]}, budget={"match": "step_time", "reference": PER_CHANNEL}
    )
    planned = plan_study(said)
    assert abs(planned[0].mismatch) <= 0.03
    assert planned[0].step_seconds == pytest.approx(planned[0].budget * (1 + planned[0].mismatch))
    assert keeps_ratios(WIDTHS, planned[0].point.widths)
    frozen = {"budget": said.budget.model_dump(mode="json"), "points": [one.entry() for one in planned]}
    again = plan_study(said, frozen=frozen)
    assert [(one.point, one.mismatch, one.step_seconds) for one in again] == [
        (one.point, one.mismatch, one.step_seconds) for one in planned
    ]


def test_a_budget_that_cannot_be_met_names_the_point_and_the_nearest():
    tiny = {"segments": "per_channel", "widths": [1, 1, 2]}
    with pytest.raises(
        SpecError, match=r"match = 'params', segments = 1: .* cannot be met within 1%; the nearest that can is"
    ):
        plan_study(study(budget={"match": "params", "reference": tiny}))


class Own(nn.Module):
    def __init__(self, arch):
        super().__init__()
        first, second = arch.widths or (8, 16)
        self.body = nn.Sequential(SegmentedConv2d(arch.in_channels, first), SegmentedConv2d(first, second))
        self.scale = float(torch.ones(1).item())  # which a network without numbers has none of
        self.head = nn.Linear(second, arch.num_classes)

    def forward(self, x_nchw):
        return self.head(self.body(x_nchw).mean((2, 3)) * self.scale)


@pytest.fixture
def own_family():
    yield lambda **options: register_model("own", Own, **options)
    del models._FAMILIES["own"]


def test_a_family_of_ones_own_needs_to_tell_its_widths(own_family):
    own_family()
    budget = {"match": "params", "reference": {"model": "probe", "width": 0.25}}
    said = study(base={"model": "own"}, axes={"segments": [1]}, budget=budget)
    with pytest.raises(SpecError, match="'own': does not tell its stage widths; give register_model its `widths`"):
        plan_study(said)


def test_a_family_of_ones_own_can_meet_a_budget(own_family):
    own_family(widths=lambda arch: arch.widths or (8, 16))
    budget = {"match": "params", "reference": {"model": "probe", "width": 1.0}}
    (planned,) = plan_study(study(base={"model": "own"}, axes={"segments": [1]}, budget=budget))
    assert abs(planned.mismatch) <= 0.01


# Contrasts


def factors(said):
    return [[factor.name for factor in one.factors] for one in examine(said, plan_study(said))]


def between(first, second):
    return {"contrasts": [{"name": "x", "between": [first, second]}]}


def test_a_contrast_of_segments_is_fair_at_an_equal_budget_only():
    sides = between({"segments": 1}, PER_CHANNEL)
    assert factors(study(**sides)) == [["segments", "parameters, which no budget holds", "MACs, which no budget holds"]]
    for match in ("params", "macs"):
        assert factors(study(**sides, budget={"match": match, "reference": PER_CHANNEL})) == [["segments"]]


def test_a_contrast_of_budgets_is_one_factor():
    sides = between({"match": "none", "segments": 1}, {"match": "params", "segments": 1})
    said = study(**sides, budget={"match": ["none", "params"], "reference": PER_CHANNEL})
    assert factors(said) == [["budget"]]


def test_bsconvs_swap_is_flagged_factor_by_factor():
    cases = [{"order": "spatial_first", "activation": "relu", "norm": True}, {"order": "pointwise_first"}]
    said = study(
        base={"image_size": 32, "downsampling": "stride"},
        axes={},
        cases=cases,
        **between({"order": "spatial_first"}, {"order": "pointwise_first"}),
    )
    (examined,) = examine(said, plan_study(said))
    assert examined.confounded
    assert [str(factor) for factor in examined.factors] == [
        "order: spatial first → pointwise first",
        "activation: relu → none (13 → 7 non-linearities)",
        "norm: yes → no (15 → 9 batch normalisations)",
        "MACs, which no budget holds: 1,878,272 → 2,692,352",
        "pixels at which the 1×1s run: 256 256 64 64 16 16 → 256 256 256 64 64 16",
    ]


def test_the_order_alone_moves_no_convolution_across_a_pool():
    said = study(
        axes={"order": ["spatial_first", "pointwise_first"]},
        base={"image_size": 32, "segments": 4},
        budget={"match": "macs", "reference": {"segments": 4}},
        **between({"order": "spatial_first"}, {"order": "pointwise_first"}),
    )
    assert factors(said) == [["order"]]


def test_what_another_axis_varies_is_no_factor():
    said = study(
        axes={"segments": [1, 2], "activation": ["none", "relu"], "seed": [0, 1]},
        budget={"match": "params", "reference": PER_CHANNEL},
        **between({"activation": "none"}, {"activation": "relu"}),
    )
    assert factors(said) == [["activation"]]
