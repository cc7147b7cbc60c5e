"""Plans: widths solved for budgets, frozen, and what contrasts change."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from spectrum import measure_cost, register_model
from spectrum._records import SpecError
from spectrum.conv.segmented import SegmentedConv2d
from spectrum.cost import speed
from spectrum.cost.budget import keeps_ratios
from spectrum.data.images import images_of
from spectrum.design.plan import PlannedTuning
from spectrum.design.run import RunConfig
from spectrum.design.study_file import parse_study
from spectrum.models.families import FAMILIES
from spectrum.models.probe import WIDTHS
from spectrum.study import planning
from spectrum.study.contrasts import examine
from spectrum.study.planning import build, plan_study, planned_run
from tests.plans import plan_of

TINY = {"dataset": "digits", "train_images": 100, "batch_size": 50, "epochs": 2}
PER_CHANNEL = {"segments": "per_channel"}


def study(**said):
    base = TINY | said.pop("base", {})
    return parse_study({"base": base, "axes": {"segments": [1, 3, 16, "per_channel"]}} | said, "tiny")


def params_of(run):
    model = build(run, images_of(run))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.medium
@pytest.mark.parametrize("match", ["params", "macs"])
def test_every_run_meets_the_budget_of_the_reference(match):
    planned = plan_study(study(budget={"match": match, "reference": PER_CHANNEL}))
    reference = planned[-1]
    assert reference.run == reference.asked, "the reference is the network that it was"
    assert reference.mismatch == 0
    for one in planned:
        model = build(one.run, images_of(one.run))
        cost = measure_cost(model, (1, 8, 8))
        assert (cost.params, cost.macs) == (one.params, one.macs)
        assert one.mismatch == getattr(cost, match) / getattr(reference, match) - 1
        assert abs(one.mismatch) <= 0.005
        assert keeps_ratios(WIDTHS, one.run.widths or WIDTHS)
        assert one.budget == getattr(reference, match)


@pytest.mark.medium
def test_every_field_of_the_network_may_vary_under_a_budget():
    cases = [
        *({"segments": 4}, {"segment_shares": [4, 2, 1, 1]}, {"stage_segments": [1, 4, "per_channel"]}),
        *({"segments": 4, "hidden": [8]}, {"segments": 4, "norm_eps": 1e-3}),
    ]
    planned = plan_study(study(axes={}, cases=cases, budget={"match": "params", "reference": PER_CHANNEL}))
    assert [one.realised_segments for one in planned[:3]] == [(4,) * 6, (4,) * 6, tuple(planned[2].realised_segments)]
    assert planned[2].realised_segments[:4] == (1, 1, 4, 4)
    assert planned[2].realised_segments[4] == planned[2].run.widths[2]
    assert all(abs(one.mismatch) <= 0.005 for one in planned)
    assert len({one.run.id for one in planned}) == 5


@pytest.mark.medium
def test_several_budgets_are_an_axis_and_share_what_is_the_same_network():
    planned = plan_study(study(budget={"match": ["none", "params"], "reference": PER_CHANNEL}))
    assert [one.match for one in planned] == ["none"] * 4 + ["params"] * 4
    assert [one.asked for one in planned[:4]] == [one.asked for one in planned[4:]]
    assert planned[3].run.id == planned[7].run.id
    assert len({one.run.id for one in planned}) == 7
    assert [one.mismatch for one in planned[:4]] == [None] * 4


def test_a_plan_is_the_same_each_time_and_whatever_else_is_in_the_study():
    budget = {"match": "params", "reference": PER_CHANNEL}
    first = plan_study(study(budget=budget))
    again = plan_study(study(budget=budget, axes={"segments": [3], "seed": [0, 7]}))
    assert [one.run.widths for one in again] == [first[1].run.widths] * 2
    assert [one.run.seed for one in again] == [0, 7]


def test_an_axis_of_widths_has_a_budget_for_each():
    axes = {"segments": [1, "per_channel"], "width": [0.5, 1.0]}
    planned = plan_study(study(axes=axes, budget={"match": "params", "reference": PER_CHANNEL}))
    by_width = {one.asked.width: one.budget for one in planned}
    assert by_width == {width: params_of(RunConfig(**TINY, width=width)) for width in (0.5, 1.0)}


@pytest.mark.medium
def test_widths_of_the_base_give_the_ratios():
    budget = {"match": "params", "reference": PER_CHANNEL}
    planned = plan_study(study(base={"widths": [40, 40]}, budget=budget))
    assert [len(one.run.widths) for one in planned] == [2] * 4
    assert all(keeps_ratios((40, 40), one.run.widths) for one in planned)
    assert planned[-1].run == planned[-1].asked


def test_a_reference_may_be_a_network_that_is_not_in_the_study():
    budget = {"match": "params", "reference": {"segments": 8, "width": 0.5, "depth": 2}}
    planned = plan_study(study(budget=budget))
    assert {one.budget for one in planned} == {params_of(RunConfig(**TINY, segments=8, width=0.5, depth=2))}


@pytest.mark.medium
def test_what_a_plan_froze_is_taken_as_it_is(monkeypatch):
    said = study(budget={"match": "params", "reference": PER_CHANNEL})
    planned = plan_study(said)
    entries = [one.record().entry() for one in planned]
    entries[0]["point"]["widths"], entries[0]["mismatch"] = [8, 16, 32], 0.25
    frozen = plan_of({"points": entries})
    again = plan_study(said, frozen=frozen)
    assert (again[0].run.widths, again[0].mismatch) == ((8, 16, 32), 0.25)
    assert again[0].params == params_of(again[0].run), "counted anew"
    assert again[1:] == planned[1:]
    assert plan_study(study(budget={"match": "macs", "reference": PER_CHANNEL}), frozen=frozen)[0].mismatch < 0.01


def read_back(planned):
    """The run that plan.json would hold of it."""
    return plan_of({"points": [planned.record().entry()]}).runs[0]


@pytest.mark.medium
def test_an_entry_of_a_plan_gives_the_run_back():
    for one in plan_study(study(budget={"match": "macs", "reference": PER_CHANNEL})):
        assert planned_run(read_back(one), one.asked) == one


@pytest.mark.parametrize(
    "said",
    [
        {"model": "resnext_small", "activation": "none", "norm": False},
        {"model": "mobilenet_v1", "order": "pointwise_first"},
        {"recipe": "jft", "optimizer": "sgd", "lr": 0.1, "ema": 0.0},
    ],
    ids=lambda said: next(iter(said.values())),
)
def test_an_entry_keeps_a_default_where_a_family_or_a_recipe_has_another_value(said):
    run = RunConfig(**TINY, segments=2, **said)
    planned = planning.CostedRun(run, 1, 1, 1, (2,), run)
    again = planned_run(read_back(planned), run)
    assert again.run == run
    assert again.run.id == run.id != RunConfig(**run.model_dump(exclude_defaults=True)).id


CLAMPED = {
    "segments": 20,
    "stage_segments": [20, 1, 33],
    "segment_width": 20,
    "segment_shares": [9, 1],
    "pointwise_segments": 20,
}


@pytest.mark.parametrize(("option", "value"), CLAMPED.items(), ids=CLAMPED)
def test_layers_are_counted_that_fall_short_of_any_option_and_kept_in_the_plan(option, value):
    widths = {"widths": [4 if option == "segment_shares" else 16, 32, 32]}
    (planned,) = plan_study(study(base={option: value} | widths, axes={"seed": [0]}))
    layers = {"stage_segments": 4, "pointwise_segments": 3}.get(option, 2)  # the last: between 16 and 32 channels too
    assert planned.clamped == ((option, layers),)
    run = read_back(planned)
    assert run.clamped_layers == {option: layers}
    assert planned_run(run, planned.asked) == planned
    untold = {name: value for name, value in run.entry().items() if name != "clamped_layers"}
    earlier = planned_run(plan_of({"points": [untold]}).runs[0], planned.asked)
    assert "clamped_layers" not in earlier.record().entry(), "a plan that does not tell is written as it was"
    assert earlier.clamped_layers == (layers if option == "segments" else 0)


@pytest.mark.parametrize(
    "said",
    [{"segment_width": 40}, {"stage_segments": [17, 33, 33]}, {"segment_shares": [99, 1]}, {"pointwise_segments": 40}],
    ids=lambda said: next(iter(said)),
)
def test_what_no_layer_can_have_is_refused(said):
    with pytest.raises(SpecError, match="no layer of 'probe' has enough channels"):
        plan_study(study(base=said | {"widths": [16, 32, 32]}, axes={"seed": [0]}))


FASTER = 0.7  # time of a step with measured backends, as a share of that with guessed ones


@pytest.fixture
def told_times(monkeypatch):
    """Times that are told, not measured, since machines are busy: a step takes as long as it has MACs, and noise."""
    noise = itertools.cycle([1.0, 1.01, 0.99])
    calls = []

    def stepper(self, run, images, *, tuned=False):
        gains = FASTER if tuned and run.segments != "per_channel" else 1.0
        return gains * measure_cost(build(run, images), images.shape).macs

    def ratio(step, standard, threads):
        calls.append(threads)
        return speed.Ratio(step / standard * next(noise), 1e-9 * standard)

    monkeypatch.setattr(planning._Planner, "_stepper", stepper)
    monkeypatch.setattr(
        planning._Planner,
        "_time_step",
        lambda self, run, images, *, tuned: 1e-9 * stepper(self, run, images, tuned=tuned),
    )
    monkeypatch.setattr(speed, "step_time_ratio", ratio)
    return calls


@pytest.mark.medium
def test_step_times_are_matched_and_kept_whatever_else_changes(told_times):
    budget = {"match": "step_time", "reference": PER_CHANNEL}
    axes = {"segments": [1, 4, "per_channel"]}
    said = study(axes=axes, budget=budget)
    planned = plan_study(said)
    for one in planned:
        assert abs(one.macs / planned[-1].macs - 1) <= 0.05
        assert abs(one.mismatch) <= 0.03
        assert keeps_ratios(WIDTHS, one.run.widths or WIDTHS)
        assert one.step_seconds == pytest.approx(one.budget * (1 + one.mismatch))
    assert set(told_times) == {1}
    frozen = plan_of({"points": [one.record().entry() for one in planned]})
    told_times.clear()
    for changed in (
        said,
        study(axes=axes | {"seed": [5, 0]}, budget=budget),
        study(axes=axes, budget=budget | {"match": ["params", "step_time"]}),
        study(axes=axes, budget=budget, base={"lr": 0.2, "epochs": 7}),
    ):
        again = {(one.asked.segments, one.match): one for one in plan_study(changed, frozen=frozen)}
        for one in planned:
            kept = again[one.asked.segments, "step_time"]
            assert (kept.run.widths, kept.mismatch, kept.step_seconds) == (
                one.run.widths,
                one.mismatch,
                one.step_seconds,
            )
    assert not told_times
    searched = frozen.model_copy(update={"runs": (), "tuning": PlannedTuning(networks=frozen.runs)})
    assert plan_study(said, frozen=searched)[0].run == planned[0].run
    assert not told_times
    plan_study(study(axes=axes, budget=budget, base={"batch_size": 25}), frozen=frozen)
    assert told_times, "another batch, another time"


@pytest.mark.medium
def test_step_times_match_with_the_backends_that_training_will_have(told_times):
    """Measured backends make all but the reference faster, so that they may be wider."""
    said = study(axes={"segments": [1, 4, "per_channel"]}, budget={"match": "step_time", "reference": PER_CHANNEL})
    *others, reference = plan_study(said, tune=True)
    for one in others:
        assert abs(FASTER * one.macs / reference.macs - 1) <= 0.05
        assert abs(one.mismatch) <= 0.03


@pytest.mark.medium
def test_a_step_time_that_no_widths_match_as_measured_is_refused(told_times, monkeypatch):
    """As on a machine whose backends are twice as fast or twice as slow as guessed, from one width to the next."""
    guessed, jumps = planning._Planner._stepper, itertools.cycle([0.5, 2.0])

    def stepper(self, run, images, *, tuned=False):
        jump = next(jumps) if tuned and run.segments == 4 else 1.0
        return jump * guessed(self, run, images)

    monkeypatch.setattr(planning._Planner, "_stepper", stepper)
    said = study(axes={"segments": [4]}, budget={"match": "step_time", "reference": PER_CHANNEL})
    with pytest.raises(SpecError, match="with the backends that are fastest here; try --tune off"):
        plan_study(said, tune=True)


@pytest.mark.medium
def test_macs_are_those_of_the_network_that_is_trained_also_where_widths_add_a_skip():
    """Width-matched, a block's skip is the identity; a solved stage wider than the one before adds a 1×1."""
    planned = plan_study(study(base={"widths": [64, 64, 64]}, budget={"match": "macs", "reference": PER_CHANNEL}))
    for one in planned:
        macs = measure_cost(build(one.run, images_of(one.run)), (1, 8, 8)).macs
        assert one.macs == macs
        assert one.mismatch == macs / planned[-1].macs - 1
        assert abs(one.mismatch) <= 0.01


@pytest.mark.medium
def test_widths_too_narrow_for_the_1x1s_segments_are_passed_over():
    planned = plan_study(study(base={"pointwise_segments": 2}, budget={"match": "params", "reference": PER_CHANNEL}))
    assert all(abs(one.mismatch) <= 0.01 for one in planned)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (
            {"batch_size": 101},
            "batch_size = 101 is more than the 100 training images of 'digits' in this study; give bat",
        ),
        ({"train_images": None, "batch_size": 4000}, "batch_size = 4000 is more than the 1,349 training images of"),
        ({"shift": 8}, "shift = 8: is no smaller than the images, which are 8×8 pixels"),
        ({"image_size": 6, "cutout": 6}, "cutout = 6: is no smaller than the images, which are 6×6 pixels"),
    ],
)
def test_what_the_images_cannot_give_is_refused_before_training(base, says):
    with pytest.raises(SpecError) as refused:
        plan_study(study(base=base))
    assert str(refused.value).startswith(says)


def test_a_default_that_the_images_cannot_give_is_refused_as_a_default():
    run = {"dataset": "digits", "train_images": 100}
    with pytest.raises(SpecError, match="batch_size = 128, the default, is more than the 100 training images"):
        plan_study(parse_study({"base": run, "axes": {"segments": [1]}}, "small"))


def test_all_images_may_be_one_batch_and_a_shift_one_pixel_short_of_them():
    assert len(plan_study(study(base={"batch_size": 100, "shift": 7, "cutout": 7}))) == 4


def test_a_frozen_plan_whose_batches_are_cut_to_the_training_images_is_planned_as_it_is():
    small, large = study(), study(base={"batch_size": 1000})
    entries = [one.record().entry() for one in plan_study(small)]
    frozen = plan_of({"points": entries, "hash": large.hash})
    assert {one.run.batch_size for one in plan_study(large, frozen=frozen)} == {1000}
    with pytest.raises(SpecError, match="batch_size = 1000"):
        plan_study(large, frozen=plan_of({"points": entries, "hash": small.hash}))


def test_a_budget_that_cannot_be_met_names_the_run_and_the_nearest():
    tiny = {"segments": "per_channel", "widths": [1, 1, 2]}
    with pytest.raises(
        SpecError,
        match=r"cannot match params for segments = 1: .* within 1%; the nearest that can is .* Choose a larger",
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
    del FAMILIES._entries["own"]


def test_a_family_of_ones_own_needs_to_tell_its_widths(own_family):
    own_family()
    budget = {"match": "params", "reference": {"model": "probe", "width": 0.25}}
    said = study(base={"model": "own"}, axes={"segments": [1]}, budget=budget)
    with pytest.raises(SpecError, match="'own': has no stage widths; pass `widths` to register_model"):
        plan_study(said)


def test_a_family_of_ones_own_can_meet_a_budget(own_family):
    own_family(widths=lambda arch: arch.widths or (8, 16))
    budget = {"match": "params", "reference": {"model": "probe", "width": 1.0}}
    (planned,) = plan_study(study(base={"model": "own"}, axes={"seed": [0]}, budget=budget))
    assert abs(planned.mismatch) <= 0.01


# Contrasts


def factors(said):
    return [[factor.name for factor in one.factors] for one in examine(said, plan_study(said))]


def between(first, second):
    return {"contrasts": [{"name": "x", "between": [first, second]}]}


@pytest.mark.medium
def test_a_contrast_of_segments_is_fair_at_an_equal_budget_only():
    sides = between({"segments": 1}, PER_CHANNEL)
    assert factors(study(**sides)) == [["segments", "parameters, not matched", "MACs, not matched"]]
    for match in ("params", "macs"):
        assert factors(study(**sides, budget={"match": match, "reference": PER_CHANNEL})) == [["segments"]]


def test_a_contrast_of_budgets_is_one_factor():
    sides = between({"match": "none", "segments": 1}, {"match": "params", "segments": 1})
    said = study(**sides, budget={"match": ["none", "params"], "reference": PER_CHANNEL})
    (examined,) = examine(said, planned := plan_study(said))
    params = {(one.match, one.asked.segments): one.params for one in planned}
    wide, narrow = params["none", 1], params["params", 1]
    assert wide > 2 * narrow
    assert str(examined.factors[0]).startswith(f"budget: none → params ({wide:,} → {narrow:,} parameters; ")
    assert str(examined.factors[0]).endswith(" MACs)")
    assert factors(said) == [["budget"]]


@pytest.mark.parametrize("match", ["params", "macs", "step_time"])
def test_sides_whose_budgets_differ_in_size_are_not_matched(match):
    contrasts = [
        {"name": "width", "between": [{"width": 2.0}, {"width": 1.0}]},
        {"name": "split", "between": [{"segments": 1}, PER_CHANNEL]},
    ]
    counted = "params" if match == "step_time" else match  # to measure times would take a minute

    def matched(budget):
        axes = {"segments": [1, "per_channel"], "width": [1.0, 2.0]}
        return study(axes=axes, budget={"match": budget, "reference": PER_CHANNEL}, contrasts=contrasts)

    planned = [replace(one, match=match) for one in plan_study(matched(counted))]
    width, split = examine(matched(match), planned)
    word = {"params": "parameter", "macs": "MAC", "step_time": "time"}[match]
    under = f", under {word} budgets of different size"
    assert [factor.name for factor in width.factors] == ["width", f"parameters{under}", f"MACs{under}"]
    assert width.confounded
    assert not split.confounded


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
        "MACs, not matched: 1,878,272 → 2,692,352",
        "pixels at which the 1×1s run: 256 256 64 64 16 16 → 256 256 256 64 64 16",
    ]


@pytest.mark.medium
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


@pytest.mark.medium
@pytest.mark.parametrize("across", ["segments", [{"segments": 4}, {"segments": 1}]])
@pytest.mark.parametrize("match", ["none", "params"])
def test_an_interaction_is_confounded_where_what_it_is_compared_across_is(across, match):
    said = study(
        axes={"segments": [1, 2, 4], "activation": ["none", "relu"], "seed": [0]},
        budget={"match": match, "reference": {"segments": 4} if match == "params" else {}},
        contrasts=[{"name": "x", "between": [{"activation": "relu"}, {"activation": "none"}], "across": across}],
    )
    (examined,) = examine(said, plan_study(said))
    assert [factor.name for factor in examined.factors] == ["activation"]
    found = [factor.name for factor in examined.across]
    assert found[0] == "segments"
    assert ("parameters, not matched" in found) == examined.confounded == (match == "none")
    entry = examined.record().entry()
    assert entry["across"] == across
    assert entry["across_factors"][0] in ("segments: 1 → 4", "segments: 4 → 1")


def test_counts_that_another_budget_lets_vary_are_noted():
    said = study(
        axes={"order": ["spatial_first", "pointwise_first"]},
        base={"image_size": 32, "downsampling": "stride"},
        budget={"match": "params", "reference": {"order": "spatial_first"}},
        **between({"order": "spatial_first"}, {"order": "pointwise_first"}),
    )
    (examined,) = examine(said, plan_study(said))
    assert [note.split(":")[0] for note in examined.notes] == ["MACs differ although parameters are matched"]


def test_a_side_that_is_partly_unmatched_is_flagged():
    said = study(
        budget={"match": ["none", "params"], "reference": PER_CHANNEL}, **between({"segments": 1}, PER_CHANNEL)
    )
    assert factors(said) == [["segments", "parameters, not matched", "MACs, not matched"]]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("axis", "consequences"),
    [
        (("depth", 1, 2), 3),
        (("residual", True, False), 1),
        (("norm", False, True), 1),
        (("activation", "none", "relu"), 1),
    ],
)
def test_what_follows_from_a_field_is_told_with_it(axis, consequences):
    name, first, second = axis
    said = study(
        axes={name: [first, second]},
        base={"segments": 4},
        budget={"match": "params", "reference": {"segments": 4, name: first}},
        **between({name: first}, {name: second}),
    )
    (examined,) = examine(said, plan_study(said))
    assert [factor.name for factor in examined.factors] == [name]
    assert len(examined.factors[0].consequences) == consequences


@pytest.mark.medium
def test_sides_whose_runs_do_not_pair_are_flagged():
    cases = [{"segments": 4, "seed": 0}, {"segments": 8, "seed": 1}]
    budget = {"match": "params", "reference": PER_CHANNEL}
    said = study(axes={}, cases=cases, budget=budget, **between({"segments": 4}, {"segments": 8}))
    assert factors(said) == [["segments", "sides do not pair"]]
    crossed = [
        {"segments": segments, "norm": norm, "activation": "relu" if relu else "none"}
        for segments, norm, relu in ((4, False, True), (4, True, False), (8, False, False), (8, True, True))
    ]
    said = study(axes={}, cases=crossed, budget=budget, **between({"segments": 4}, {"segments": 8}))
    assert "sides do not pair" in factors(said)[0]


def test_two_names_of_one_network_are_told():
    said = study(axes={"segments": [128, "per_channel"]}, **between({"segments": 128}, PER_CHANNEL))
    (examined,) = examine(said, plan_study(said))
    assert examined.notes == ("both sides are the same network",)


@pytest.mark.medium
def test_another_base_is_another_budget_and_so_another_study():
    budget = {"match": "params", "reference": PER_CHANNEL}
    one, other = (study(base={"depth": d}, axes={"depth": [1, 2]}, budget=budget) for d in (1, 2))
    assert one.hash != other.hash
    frozen = plan_of({"points": [planned.record().entry() for planned in plan_study(one)]})
    budgets = [{planned.budget for planned in plan_study(said, frozen=frozen)} for said in (one, other)]
    assert budgets[0] != budgets[1]
