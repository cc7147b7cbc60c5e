"""Small benchmarks run to their end, and summaries follow from tables."""

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from spectrum import build_model
from spectrum.bench import engine, models, op, steps, sweep, train
from spectrum.bench import machine as of_machine
from spectrum.bench.cells import Cell, Window, every, standard
from spectrum.bench.machine import folder_of
from spectrum.bench.plain_xception import PlainXception
from spectrum.bench.rounds import alternate, clock_of, spread
from spectrum.cli import main
from spectrum.conv.backends.choice import candidates

ROOT = Path(__file__).parents[2]
no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")


def test_rounds_take_turns_until_each_thing_has_enough():
    order = []
    things = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = alternate(things, least=2, most=3, seconds=1e9, block_seconds=0)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert "".join(order[:4]) == "aabb", "twice to learn how long each takes"
    rounds = ["".join(order[start : start + 2]) for start in (4, 6, 8)]
    assert set(rounds) == {"ab", "ba"}, "none always after the same other"


def test_spread_is_in_milliseconds():
    assert spread([0.001, 0.002, 0.003, 0.004, 0.005]) == {"ms": 3.0, "ms_q1": 2.0, "ms_q3": 4.0, "rounds": 5}


class Event:
    """Stands in for an event of a card, whose clock counts the calls that came before, a millisecond each."""

    made, calls = [], 0

    def __init__(self, enable_timing):
        assert enable_timing
        self.made.append(self)

    def record(self):
        self.at = Event.calls

    def synchronize(self):
        assert self is self.made[-1], "the last one, or times are taken too early"

    def elapsed_time(self, later):
        return later.at - self.at


def test_on_a_card_time_is_that_between_two_of_its_events(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)

    def call():
        Event.calls += 1

    clock = clock_of("cuda")
    assert torch.backends.cudnn.benchmark
    assert clock(call, 5) == pytest.approx(0.001)
    assert Event.calls == 5
    assert clock_of("cpu")(call, 5) < 0.001
    times = alternate({"a": call}, least=2, most=3, seconds=1e9, block_seconds=0.01, clock=clock)
    assert times["a"] == pytest.approx([0.001] * 3)
    assert Event.calls == 10 + 2 + 3 * 10, "as many calls as fit into a block"


def test_a_card_and_a_processor_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert folder_of("cuda", tmp_path) == tmp_path / "nvidia-h100-80gb-hbm3"
    monkeypatch.setattr(of_machine, "processor", lambda: "Intel(R) Xeon(R) Processor (6/167/1)")
    assert folder_of("cpu", tmp_path) == tmp_path / "intel-xeon-processor-6-167-1"


def op_row(segments, way, ms, shape="1×8×4×4", channels=8):
    return {
        "shape": shape,
        "segments": segments,
        "channels_per_segment": channels / segments,
        "way": way,
        "ms": ms,
        "ms_q1": ms,
        "ms_q3": ms,
        "yardstick_ms": 1.0,
        "percent": 100 / ms,
    }


def test_conclusions_about_the_operation_follow_from_its_table():
    rows = [op_row(s, op.OURS, ms) for s, ms in ((1, 2.0), (2, 1.6), (3, 1.8), (4, 1.0), (8, 1.25))]
    rows += [op_row(s, "grouped", ms) for s, ms in ((1, 1.9), (2, 1.6), (3, 9.0), (4, 4.0), (8, 1.5))]
    rows += [op_row(s, "separate", 8.0) for s in (1, 2, 3, 4, 8)]
    found = op.findings(pd.DataFrame(rows))
    assert found["lowest percent of the roofline"] == 50
    assert found["measurements below 50%"] == 0
    assert found["measurements with equal segments"] == 4, "uneven segments are another comparison"
    assert found["largest slowdown vs the best other implementation"] == pytest.approx(2.0 / 1.9)
    assert found["speedup over the best other at 2 per segment"] == [4.0, 4.0]
    assert found["3 unequal segments: time relative to the slower equal neighbour"] == pytest.approx(1.8 / 1.6)
    assert found["largest time ratio when segments double"] == 1.25


def test_conclusions_about_a_step_follow_from_its_table():
    rows = [
        {"segments": 1, "segment_width": width, "way": way, "ms": ms, "data_percent": data}
        for width, times in ((None, (30, 24, 20, 15)), (8, (30, 20, 25, 10)))
        for way, ms, data in zip(train.WAYS, times, (9, 3, 4, 2), strict=True)
    ]
    found = train.findings(pd.DataFrame(rows))
    assert found["1 segment: speedup over the default loop"] == 2
    assert found["8 channels per segment: speedup over the default loop"] == 3
    assert found["8 channels per segment: speedup over the best tuned loop"] == 2
    assert not [name for name in found if "Triton" in name]
    by_triton = {"segments": 1, "segment_width": 8, "way": train.TRITON, "ms": 5, "data_percent": 4}
    whole = pd.DataFrame([row for row in rows if row["segment_width"] == 8] + [by_triton])
    assert train.findings(whole)["8 channels per segment: speedup by Triton"] == 2
    assert "triton, ms" in train.as_markdown(whole)
    assert found["highest share of a step spent on data, percent"] == 2


def test_conclusions_about_a_network_follow_from_its_table():
    rows = [
        {"task": task, "way": way, "ms": ms}
        for task, times in (("inference", (2, 3, 2, 5)), ("training step", (4, 4, 6, 2)))
        for way, ms in zip(models.WAYS, times, strict=True)
    ]
    assert models.findings(pd.DataFrame(rows)) == {
        "inference: speedup vs torch.nn": 1.5,
        "inference: speedup vs torch.nn, NHWC": 1.0,
        "inference: speedup vs Keras on torch": 2.5,
        "training step: speedup vs torch.nn": 1.0,
        "training step: speedup vs torch.nn, NHWC": 1.5,
        "training step: speedup vs Keras on torch": 0.5,
    }


@pytest.mark.medium
def test_the_network_written_with_torch_alone_is_ours():
    """The same numbers, in the order in which either lists them, give the same logits and gradients."""
    torch.manual_seed(0)
    ours = build_model("xception", image_size=71, num_classes=5, padding="torch").double()
    plain = PlainXception(5).double()
    for tensor in ours.state_dict().values():
        if tensor.ndim:
            tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_(0, 0.3 / tensor[0].numel() ** 0.5)
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True)))
    x_nchw = torch.randn(3, 3, 71, 71, dtype=torch.float64)
    for training in (False, True):
        logits = [model.train(training)(x_nchw) for model in (ours, plain)]
        torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)
        gradients = [
            torch.autograd.grad(y.square().sum(), list(model.parameters()))
            for y, model in zip(logits, (ours, plain), strict=True)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's, on numpy 2
def test_a_network_is_measured_beside_its_peers(keras):
    said = []
    table = models.measure(threads=1, image_size=71, batch_size=2, rounds=2, on_row=said.append)
    assert [(row.task, row.way) for row in table.itertuples()] == [(t, w) for t in models.TASKS for w in models.WAYS]
    assert (table.ms > 0).all()
    assert (table.rounds == 2).all()
    assert len(said) == 8


@pytest.mark.slow
def test_the_engine_and_a_folder_of_rows_are_measured(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    said = []
    table = engine.measure(rows=200, runs=3, rounds=2, on_row=said.append)
    assert "Ray is not installed, so it is left out" in said.pop(1)
    assert list(table.what) == ["point", "status", "load", "resume"]
    assert (table.ms > 0).all()
    assert list(table["rounds"]) == [3, 2, 2, 2]
    assert len(said) == 4
    found = engine.findings(table)
    assert found["milliseconds per trivial run"] == table.ms[0]
    assert found["seconds to load"] == table.ms[2] / 1e3
    assert found["highest peak memory, GB"] == table.memory_gb.max()


@pytest.mark.cluster
@pytest.mark.slow
def test_ray_is_measured_where_it_is_installed():
    pytest.importorskip("ray")
    table = engine.measure(rows=200, runs=3, rounds=2, simulated=(4, 24)).set_index("what")
    assert list(table.index) == ["point", "point on Ray", "busy", "status", "load", "resume"]
    assert table.ms["point on Ray"] > 0
    assert 30 < table.percent["busy"] <= 100
    assert "| a run of one step, Ray |" in engine.as_markdown(table.reset_index())
    assert engine.findings(table.reset_index())["percent of the time that workers are busy"] == table.percent["busy"]


def test_without_keras_the_others_are_measured(monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    monkeypatch.setattr(models, "_calls", lambda way, x_nchw, y_n: dict.fromkeys(models.TASKS, lambda: None))
    said = []
    table = models.measure(rounds=2, image_size=71, on_row=said.append)
    assert models.KERAS not in set(table.way)
    assert "Keras is not installed, so it is left out" in said[0]


@pytest.mark.medium
def test_the_operation_is_measured_beside_its_peers(tmp_path, capsys):
    assert main(["bench", "op", "--shape", "1", "2", "5", "4", "--out", str(tmp_path), "--threads", "1"]) == 0
    folder = folder_of("cpu", tmp_path)
    table = pd.read_csv(folder / "op.csv")
    assert sorted(table.segments.unique()) == [1, 2]
    assert {op.OURS, *op.PEERS} - {"torch.compile"} <= set(table[table.segments == 2].way)
    assert (table.ms > 0).all()
    assert table.percent.to_numpy() == pytest.approx((100 * table.yardstick_ms / table.ms).to_numpy(), rel=1e-3)
    record = json.loads((folder / "op.machine.json").read_text())
    assert record["threads"] == 1
    assert record["torch"]
    said = capsys.readouterr().out
    assert "measurements below 50%" in said
    assert said.split()[:4] == ["input", "kernel", "layout", "segments"]
    assert "yardstick" not in said


def test_every_cell_of_the_grid_is_there_once():
    cells = [*every()]
    assert len(cells) == len(set(cells)) == 14 * 6 * 2 * 2, "windows, widths, layouts, shapes"
    places = {(c.window.kernel, c.window.stride, c.window.dilation, c.channels // c.segments, c.layout) for c in cells}
    grid = set(itertools.product((1, 3, 5, 7), (1, 2), (1, 2), (1, 2, 4, 8, 16, 32), ("channels_last", "contiguous")))
    assert places == {place for place in grid if place[0] > 1 or place[2] == 1}, "a 1×1 has no dilation"
    assert [cell.segments for cell in every([(1, 6, 4, 4)]) if cell.window == Window()] == [3, 6] * 2


def test_the_standard_cells_have_every_divisor_and_other_windows():
    cells = standard()
    plain = {(cell.shape, cell.segments) for cell in cells if cell.window == Window()}
    assert plain == set(
        pd.read_csv(ROOT / "results/bench/amd-epyc/op.csv")[["shape", "segments"]].apply(
            lambda row: (tuple(map(int, row["shape"].split("×"))), row["segments"]), axis=1
        )
    )
    assert {cell.window for cell in cells} == {Window(), Window(3, 2), Window(3, 1, 2), Window(5), Window(7)}
    assert {cell.layout for cell in cells} == {"channels_last"}
    assert {cell.segments for cell in standard(shapes=[(1, 6, 4, 4)])} == {1, 2, 3, 6}


@pytest.mark.parametrize(
    ("window", "layout"), [(Window(3, 2), "contiguous"), (Window(5, 2, 2), "channels_last"), (Window(1), "contiguous")]
)
def test_all_implementations_of_a_cell_do_the_same(window, layout):
    cell = Cell((2, 8, 9, 7), 4, window, layout)
    modules = op._modules(cell, op.Setting(compiles=False))
    whole_layout = {"grouped, NCHW", op.OURS, "block-diagonal", "separate"}
    assert modules.keys() == (whole_layout if layout == "contiguous" else whole_layout | {"grouped"})
    reference = modules["grouped, NCHW"]
    weights = torch.cat([weight.detach() for weight in reference.spatial.weights])  # (8, 2, k, k)
    with torch.no_grad():
        for name in (op.OURS, "grouped"):
            if name in modules:
                modules[name].load_state_dict(reference.state_dict())
        for segment, branch in enumerate(modules["separate"].branches):
            branch.weight.copy_(weights[2 * segment : 2 * segment + 2])
        (blocks,) = modules["block-diagonal"].spatial.weights
        blocks.zero_()
        for channel in range(8):
            first = channel // 2 * 2
            blocks[channel, first : first + 2] = weights[channel]
        x_nchw = torch.randn(cell.shape)
        for module in modules.values():
            torch.testing.assert_close(module(x_nchw), reference(x_nchw), rtol=1e-4, atol=1e-5)


def test_the_measured_choice_is_a_way_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECTRUM_TUNE", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cell = Cell((2, 8, 8, 8), 4, Window(5))
    table = op.measure([cell], threads=1, seconds=0.001, compiles=False)
    (measured,) = table[table.way == op.MEASURED].to_dict("records")
    assert measured["lowering"] in candidates()
    assert (measured["kernel"], measured["stride"], measured["dilation"], measured["layout"]) == (
        5,
        1,
        1,
        "channels_last",
    )
    (row,) = op.compared(table).to_dict("records")
    assert row["measured_speedup"] == pytest.approx(row["other_ms"] / row["measured_ms"])
    assert row["window"] == "5×5"
    assert "speedup, measured choice" in op.as_markdown(table)


def test_losses_are_printed_first_and_counted():
    rows = [op_row(s, op.OURS, ms) for s, ms in ((1, 2.0), (2, 1.6), (4, 1.0))]
    rows += [op_row(s, "grouped", ms) for s, ms in ((1, 1.97), (2, 1.5), (4, 4.0))]
    rows += [op_row(s, op.MEASURED, ms) for s, ms in ((1, 1.97), (2, 1.6), (4, 1.0))]
    other = [
        row | {"kernel": 5, "stride": 2, "dilation": 1, "layout": "contiguous"}
        for row in rows[:6]
        if row["segments"] > 1
    ]
    plain = [row | {"kernel": 3, "stride": 1, "dilation": 1, "layout": "channels_last"} for row in rows]
    table = pd.DataFrame([*plain, *other])
    assert op.printed(table)["speedup"].is_monotonic_increasing
    assert op.printed(table)["segments"].tolist() == [2, 2, 1, 4, 4]
    found = op.findings(table)
    assert found["measurements slower than the best other"] == 2, "of 0.94 each; 0.985 may be noise"
    assert found["5×5, stride 2: speedup over the best other"] == pytest.approx([1.5 / 1.6, 4.0])
    assert found["measured choice: lowest speed relative to the fastest of all"] == pytest.approx(1.5 / 1.6)
    assert found["lowest percent of the roofline"] == 50, "of the 3×3 in channels_last"


def test_only_the_operation_has_a_grid(capsys):
    assert main(["bench", "train", "--all"]) == 2
    assert "only op takes --all" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_is_measured_in_processes_that_take_turns():
    table = train.measure([{"segments": 1}], ("default loop", train.OURS), threads=1, rounds=2, steps=1)
    assert list(table.way) == ["default loop", train.OURS]
    assert (table.images_per_second > 0).all()
    assert table.data_percent.between(0, 100).all()
    assert "| 1 segment |" in train.as_markdown(table)


@pytest.mark.slow
def test_the_steps_of_a_studys_networks_are_measured_once_each(tmp_path, capsys):
    file = tmp_path / "two.toml"
    file.write_text(
        'axes = { segments = [1, 4], seed = [0, 1] }\nbase = { dataset = "digits", epochs = 1, train_images = 200 }\n'
        'budget = { match = ["none", "params"], reference = { segments = 4 } }'
    )
    assert main(["run", str(file), "--out", str(tmp_path / "two")]) == 0
    seen = []
    ways = (steps.NATIVE, steps.OURS)
    table = steps.measure(tmp_path / "two", ways, threads=1, rounds=2, steps=1, on_row=seen.append)
    assert len(seen) == 6, "three networks, twice: the reference is one under both budgets"
    places = table[["match", "segments", "way"]].values.tolist()
    assert places == [[match, place, way] for match in ("none", "params") for place in (1, 4) for way in ways]
    unmatched, matched = (table[(table.match == match) & (table.segments == 4)] for match in ("none", "params"))
    assert unmatched.ms.tolist() == matched.ms.tolist()
    assert (table.ms > 0).all()
    assert (table.apart >= 1).all()
    times, _ = steps.findings(table).values()
    assert 0 < times[0] <= times[1] <= times[2]


@pytest.mark.slow
def test_a_study_and_a_script_train_the_same_runs():
    curve = ({"segments": 1}, {"segment_width": 4})
    table = sweep.measure(curve, dataset="digits", train_images=300, epochs=1, seeds=1, cores=1)
    assert len(table) == 4
    assert table.test_accuracy.between(0, 1).all()
    found = sweep.findings(table)
    assert found["speedup over the default loop, whole curve"] > 0
    assert "| 4 channels per segment |" in sweep.as_markdown(table)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["op", "--threads", "0"], "--threads 0: expected at least 1"),
        (["op", "--shape", "1", "2", "0", "4"], "--shape"),
        (["steps"], "bench steps: needs --study FOLDER"),
        (["op", "--study", "results/curve"], "bench op --study results/curve: only steps takes --study; leave it out"),
        (["steps", "--study", "nowhere"], "--study nowhere: no plan.json with runs"),
        (["train", "--shape", "1", "2", "3", "4"], "bench train --shape 1 2 3 4: only op takes --shape"),
        (["train", "--dtype", "float16"], "bench train --dtype float16: only op takes --dtype"),
        (["engine", "--device", "cuda"], "bench engine --device cuda: only op, train, sweep and models take --device"),
        pytest.param(["op", "--device", "cuda"], "bench op --device cuda: torch sees no card here", marks=no_card),
    ],
)
def test_wrong_input_is_named_and_measures_nothing(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    said = capsys.readouterr()
    assert says in said.out + said.err
    assert not list(tmp_path.iterdir())
