"""Which backend is fastest is measured once per machine and shape class, kept, shared, and used from then on."""

import copy
import fcntl
import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spectrum import SegmentedConv2d, build_model, prefer_backend
from spectrum._cache import cache_folder
from spectrum.conv import kept, machine, tuning
from spectrum.conv.backends.choice import BACKENDS, candidates, choose, guess
from spectrum.conv.backends.interface import Backend, Geometry
from spectrum.conv.backends.native import native
from spectrum.conv.backends.table import ShapeClass, class_of, lookup, of_layer
from spectrum.conv.grouped import GroupedConv2d
from spectrum.conv.machine import machine_key
from spectrum.conv.segments import Run
from spectrum.conv.tuning import Timed, classes_of, measure, tune, use_choices
from tests.conv.exact import noting_calls
from tests.registries import restored

LAST = torch.channels_last
ROOT = Path(__file__).parents[2]
SHAPE = (8, 16, 6, 6)


class Watch(tuning.Stopwatch):
    """Time goes by as costs say: seconds of a pass by backend, and more by a share `rises` with each call of it."""

    costs: ClassVar[dict[str, float]]
    calls: ClassVar[Counter[str]]
    time: ClassVar[float]
    rises: ClassVar[float]

    def now(self):
        return self.time

    def seconds(self, function, calls):
        (name,) = function.args
        Watch.calls[name] += calls
        cost = self.costs.get(name, 0.001) * (1 + self.rises * Watch.calls[name])
        Watch.time += cost * calls
        return cost


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache folder of its own, with the kernels of the usual one."""
    machine_key("cpu")  # builds them, if they are not there
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    (folder / "kernels").symlink_to(cache_folder() / "kernels")
    monkeypatch.setenv("SPECTRUM_CACHE", str(folder))
    return folder


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.setattr(tuning, "Stopwatch", Watch)
    Watch.costs, Watch.calls, Watch.time, Watch.rises = {}, Counter(), 0.0, 0.0
    return Watch


def layer(segments=4, **options):
    return SegmentedConv2d(16, 16, segments=segments, pointwise=False, **options)


def images(shape=SHAPE):
    return torch.randn(shape).contiguous(memory_format=LAST)


def file_of(folder):
    (path,) = (folder / "choices").glob("*.json")
    return path


def the_class(segments=4, **options):
    return class_of(images(), layer(segments, **options).spatial.geometry)


# What is chosen


@pytest.mark.parametrize("fastest", ["native", "converted", "separate", "coalesced", "block_diagonal", "compiled"])
def test_the_fastest_is_kept_and_used(fastest, watch, folder):
    watch.costs = {fastest: 0.0005}
    model = layer()
    tuned = tune(model, SHAPE)
    assert (tuned.measured, tuned.known, tuned.left) == (1, 0, 0)
    assert list(tuned.backends.values()) == [fastest]
    assert model.spatial.backend_for(images()) == fastest
    stored = json.loads(file_of(folder).read_text())
    assert stored["machine"] == tuned.machine == machine_key("cpu")
    assert stored["choices"][str(the_class())]["backend"] == fastest
    assert torch.equal(model(images()), model(images())) is False, "the images differ"
    x_nchw = images()
    torch.testing.assert_close(model(x_nchw), native(x_nchw, list(model.spatial.weights), model.spatial.geometry))


@pytest.mark.parametrize(("faster", "chosen"), [(0.98, "guess"), (0.95, "native")])
def test_a_difference_within_the_noise_leaves_the_guess(faster, chosen, watch):
    watch.costs = {"native": 0.001 * faster}
    standard = guess(images(), layer().spatial.geometry)
    assert standard != "native"
    assert list(tune(layer(), SHAPE).backends.values()) == [standard if chosen == "guess" else chosen]


def test_nothing_is_measured_twice(watch):
    first = tune(layer(), SHAPE)
    spent = dict(watch.calls)
    again = tune(layer(), SHAPE)
    assert (again.measured, again.known, again.backends) == (0, 1, first.backends)
    assert tune(layer(), (9, *SHAPE[1:])).measured == 0, "9 images are of the class of 8"
    assert dict(watch.calls) == spent
    assert tune(layer(), (16, *SHAPE[1:])).measured == 1


def test_choices_that_stand_are_neither_measured_nor_looked_up(watch):
    standing = {str(the_class()): "separate"}
    model = layer()
    tuned = tune(model, SHAPE, known=standing)
    assert tuned.backends == standing
    assert (tuned.measured, tuned.known) == (0, 1)
    assert not watch.calls
    assert model.spatial.backend_for(images()) == "separate"


def test_slower_candidates_drop_out_early(watch):
    watch.costs = {"compiled": 0.001, "native": 0.0011, "coalesced": 0.002, "separate": 0.1}
    measure(the_class(), candidates(), Watch("cpu"))
    assert watch.calls["separate"] == tuning.LOOKS, "far slower: only looked at"
    turns = 50 if tuning.BLOCK_SECONDS / 0.002 > 50 else round(tuning.BLOCK_SECONDS / 0.002)
    assert watch.calls["coalesced"] <= tuning.LOOKS + 1 + turns * tuning.LEAST_ROUNDS
    assert watch.calls["native"] > watch.calls["coalesced"]


def test_a_machine_that_slows_down_does_so_for_all(watch):
    """Each pass takes longer than the one before; in turns the order of two equals does not matter."""
    watch.costs, watch.rises = {"native": 0.0008, "compiled": 0.001}, 0.001
    assert measure(the_class(), ["native", "compiled"], Watch("cpu")).backend == "native"
    assert measure(the_class(), ["compiled", "native"], Watch("cpu")).backend == "native"


@pytest.mark.parametrize("cost", [0.001, 0.05, 0.3, 10.0])
def test_a_class_takes_its_time_and_not_much_more(cost, watch):
    watch.costs = {"compiled": cost, "native": 1.05 * cost, "converted": 1.1 * cost}
    measure(the_class(), ["native", "converted", "compiled"], Watch("cpu"), limit=1.0)
    fewest = 3 * cost * 1.1 * (1 + 1 + tuning.LEAST_ROUNDS)  # passes without which nothing is known
    assert watch.time <= max(1.0 + 3 * 1.1 * max(cost, tuning.BLOCK_SECONDS), fewest)


def test_what_is_faster_by_medians_alone_is_noise():
    """On a busy machine some turns take many times as long."""
    assert tuning._winner({"guess": [1.0, 9.0, 9.0], "other": [1.1, 8.0, 8.0]}, "guess") == "guess"
    assert tuning._winner({"guess": [1.0, 9.0, 9.0], "other": [0.9, 8.0, 8.0]}, "guess") == "other"
    assert tuning._winner({"guess": [1.0] * 4, "other": [0.98] * 4}, "guess") == "guess"
    assert tuning._winner({"guess": [1.0] * 3, "a": [0.7] * 9, "b": [0.6, 0.6, 0.6, 0.9]}, "guess") == "b"


def test_a_class_that_the_guess_cannot_compute_keeps_it(watch, monkeypatch):
    monkeypatch.setattr(tuning._Passes, "works", lambda self, name: False)
    assert measure(the_class(), candidates(), Watch("cpu")) == Timed(guess(images(), the_class().geometry))


def test_large_batches_are_measured_on_fewer_images(monkeypatch):
    seen = []
    monkeypatch.setattr(Watch, "seconds", lambda self, function, calls: seen.append(function.func.images) or 0.004)
    measure(class_of(images((64, *SHAPE[1:])), layer().spatial.geometry), candidates(), Watch("cpu"))
    assert set(seen) == {4, 25}, "0.001 s per image, and a pass may take 0.025 s"


def test_what_is_not_reached_in_time_keeps_the_guess(watch, monkeypatch):
    model = build_model("probe", segments=4, width=0.25)
    needed = classes_of(model, (8, 3, 32, 32))
    measured = []

    def one_each(one, names, watch, limit):
        measured.append(one)
        monkeypatch.setattr(tuning, "time", Clock(10.0 * len(measured)))
        return Timed("native", {"native": 1.0})

    monkeypatch.setattr(tuning, "measure", one_each)
    monkeypatch.setattr(tuning, "time", Clock(0.0))
    tuned = tune(model, (8, 3, 32, 32), seconds=20.0)
    assert (len(measured), tuned.measured, tuned.left) == (2, 2, len(needed) - 2)
    assert measured[0].numbers * needed[measured[0]] == max(one.numbers * count for one, count in needed.items())
    monkeypatch.setattr(tuning, "measure", lambda *_: Timed("native"))
    assert (tune(model, (8, 3, 32, 32)).known, tune(model, (8, 3, 32, 32)).known) == (2, len(needed))


class Clock:
    """A clock that stands."""

    def __init__(self, at):
        self.at = at

    def perf_counter(self):
        return self.at


# Who takes part


class Mine(Backend):
    def refusal_of(self, geometry):
        return None if geometry.stride == (1, 1) else "it takes stride 1"

    def convolve(self, x_nchw, weights, geometry):
        return native(x_nchw, weights, geometry)


@pytest.fixture
def mine(monkeypatch):
    restored(monkeypatch, BACKENDS)
    BACKENDS.add("mine", Mine(), maker=Mine)


def test_a_backend_of_ones_own_takes_part_if_asked(mine, watch, folder):
    watch.costs = {"mine": 0.0001}
    assert list(tune(layer(), SHAPE).backends.values()) != ["mine"]
    file_of(folder).unlink()
    model = layer()
    assert list(tune(model, SHAPE, backends=["native", "mine"]).backends.values()) == ["mine"]
    assert model.spatial.backend_for(images()) == "mine"
    assert not list((folder / "choices").glob("*.json")), "another process may not have it"


def test_candidates_that_refuse_or_fail_are_left_out(mine, watch, monkeypatch):
    watch.costs = {"mine": 0.0001}
    tune(layer(stride=2), SHAPE, backends=["native", "mine"])
    assert watch.calls["mine"] == 0
    monkeypatch.setattr(Mine, "convolve", lambda *_: 1 / 0)
    assert list(tune(layer(), SHAPE, backends=["native", "mine"]).backends.values()) != ["mine"]
    assert watch.calls["mine"] == 0


def test_an_unknown_candidate_is_refused_by_name():
    with pytest.raises(ValueError, match="backend 'compild': unknown; did you mean 'compiled'"):
        tune(layer(), SHAPE, backends=["compild"])


def test_named_backends_stay(watch):
    with prefer_backend("native"):
        preferred = layer()
    for model in (preferred, layer(backend="compiled")):
        assert tune(model, SHAPE).backends == {}
    assert not watch.calls


def test_a_network_that_cannot_be_timed_is_refused():
    with pytest.raises(ValueError, match="is on 'meta', where nothing can be timed"):
        tune(layer(device="meta"), SHAPE)
    with pytest.raises(ValueError, match=r"input_shape=\(8, 3, 6, 6\): the network does not take it: .*in_channels=16"):
        tune(layer(), (8, 3, 6, 6))


def test_tuning_leaves_a_network_and_random_numbers_as_they_are(watch):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Dropout(0.5), layer()).train()
    model[1].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tune(model, (8, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_types_layouts_and_autocast_are_classes_of_their_own():
    model = layer()
    with torch.autocast("cpu", torch.bfloat16):
        (cast,) = classes_of(model, SHAPE)
    (plain,) = classes_of(model, SHAPE)
    (double,) = classes_of(copy.deepcopy(model).double(), SHAPE)
    assert [str(one).split(", ", 2)[2] for one in (cast, plain, double)] == [
        "channels_last, float32 as bfloat16, cpu",
        "channels_last, float32, cpu",
        "channels_last, float64, cpu",
    ]
    for one in (cast, plain, double):
        assert measure(one, candidates(), tuning.Stopwatch("cpu"), 0.05).seconds


# Lookup


def test_the_nearest_number_of_images_counts_and_another_size_is_guessed():
    one = the_class()
    table = {ShapeClass(one.geometry, count, one.case): name for count, name in [(8, "native"), (64, "separate")]}
    measured = of_layer(one.geometry, table)
    found = {count: lookup(measured, images((count, *SHAPE[1:]))) for count in (1, 8, 20, 24, 500)}
    assert found == {1: "native", 8: "native", 20: "native", 24: "separate", 500: "separate"}
    assert lookup(measured, images((8, 16, 7, 6))) is None
    assert lookup(measured, torch.randn(SHAPE)) is None, "in another layout"
    assert lookup(measured, images()[0]) is None
    assert of_layer(Geometry((Run(4, 4, 4),), (3, 3)), table) == {}


def test_a_choice_that_this_machine_does_not_have_is_guessed():
    one = the_class()
    for name in ("of another machine", "coalesced"):
        measured = of_layer(one.geometry, {one: name})
        stride_2 = Geometry((Run(2, 8, 8),), (3, 3), padding=(1, 1))
        expected = guess(images(), stride_2)
        assert choose("auto", images(), stride_2, measured) == expected, name


sizes = st.integers(1, 300)
pairs = st.tuples(st.integers(0, 9), st.integers(0, 9))
shape_classes = st.builds(
    ShapeClass,
    st.builds(
        Geometry, st.lists(st.builds(Run, sizes, sizes, sizes), min_size=1).map(tuple), pairs, pairs, pairs, pairs
    ),
    st.integers(0, 12).map(lambda n: 2**n),
    st.tuples(
        sizes,
        sizes,
        st.booleans(),
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
        st.sampled_from([None, torch.bfloat16, torch.float16]),
        st.sampled_from(["cpu", "cuda"]),
    ),
)


@given(shape_classes)
def test_the_text_of_a_class_names_it(one):
    assert ShapeClass.of_text(str(one)) == one


@pytest.mark.parametrize("text", ["", "4x(4-4)", "{} more", "x{}", "{}".replace("{}", "4x(4-4) k3x3")])
def test_what_is_no_class_is_refused(text):
    with pytest.raises(ValueError, match="not a shape class"):
        use_choices(layer(), {text.format(the_class()): "native"})


def test_only_choices_of_the_network_are_given_back():
    one, other = the_class(), the_class(segments=2)
    assert use_choices(layer(), {str(one): "native", str(other): "compiled"}) == {str(one): "native"}


@pytest.mark.medium
def test_a_compiled_network_has_its_measured_backend():
    torch.compiler.reset()
    model = layer()
    x_nchw = images()
    for backend, called in [("native", "conv2d"), ("coalesced", "derived_conv2d")]:
        use_choices(model, {str(the_class()): backend})
        noting, names = noting_calls()
        compiled = torch.compile(model, backend=noting, fullgraph=True)
        torch.testing.assert_close(compiled(x_nchw), model(x_nchw))
        assert any(called in name for name in names), (backend, names)
        torch.compiler.reset()


def test_a_copy_of_a_network_keeps_its_choices(watch):
    watch.costs = {"separate": 0.0001}
    model = layer()
    tune(model, SHAPE)
    assert copy.deepcopy(model).spatial.backend_for(images()) == "separate"


# Kept in the cache


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"machine": "another", "choices": {}}',
        b'{"machine": MACHINE, "choices": []}',
        b'{"machine": MACHINE, "choices": {"a": {"backend": 3, "seconds": {}}}}',
        b'{"machine": MACHINE, "choices": {"a": {"backend": "native", "seconds": {"native": "soon"}}}}',
    ],
    ids=repr,
)
def test_a_damaged_file_is_announced_and_measured_anew(content, watch, folder, caplog):
    tune(layer(), SHAPE)
    path = file_of(folder)
    path.write_bytes(content.replace(b"MACHINE", json.dumps(machine_key("cpu")).encode()))
    with caplog.at_level(logging.WARNING, "spectrum.tuning"):
        assert tune(layer(), SHAPE).measured == 1
    assert f"{path} cannot be read" in caplog.text
    assert "backends are measured anew" in caplog.text
    assert tune(layer(), SHAPE).known == 1


def test_a_choice_of_a_backend_that_is_gone_is_measured_anew(watch, folder):
    tune(layer(), SHAPE)
    path = file_of(folder)
    path.write_text(path.read_text().replace('"backend": "', '"backend": "once '))
    assert tune(layer(), SHAPE).measured == 1


def test_each_machine_key_has_its_own_choices(watch, folder, monkeypatch):
    tune(layer(), SHAPE)
    monkeypatch.setattr(machine, "processor", lambda: "another processor")
    other = tune(layer(), SHAPE)
    assert other.measured == 1
    assert other.machine.startswith("another processor, ")
    assert len(list((folder / "choices").glob("*.json"))) == 2


def test_threads_torch_and_code_are_part_of_the_key(monkeypatch):
    keys = {machine_key("cpu")}
    for name, value in [("get_num_threads", lambda: 77), ("__version__", "9.9")]:
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, value)
            keys.add(machine_key("cpu"))
    monkeypatch.setattr(machine, "code_hash", lambda: "other code")
    assert len(keys | {machine_key("cpu")}) == 4


def test_a_gpu_is_named_with_its_libraries(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a card {device}")
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91000)
    key = machine_key("cuda:1")
    assert key.startswith("a card cuda:1, CUDA 99.1, cuDNN 91000, ")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert "benchmark" in machine_key("cuda:1")
    assert "thread" not in key


def test_an_unusable_cache_folder_costs_the_keeping_and_not_the_choice(watch, folder, caplog):
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING, "spectrum.tuning"), pytest.warns(UserWarning, match="cache folder"):
        assert tune(layer(), SHAPE).measured == 1
    assert tune(layer(), SHAPE).measured == 1


def test_a_full_disk_costs_the_keeping_and_not_the_choice(watch, monkeypatch, caplog):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(kept, "write_whole", full)
    with caplog.at_level(logging.WARNING, "spectrum.tuning"):
        assert tune(layer(), SHAPE).measured == 1
    assert "measured backends are not kept" in caplog.text
    assert "No space left" in caplog.text


def test_a_process_that_measures_for_too_long_is_not_waited_for(watch, folder, monkeypatch, caplog):
    tune(layer(), SHAPE)
    monkeypatch.setattr(kept, "WAIT", 0.1)
    with file_of(folder).with_suffix(".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        model = layer(2)
        with caplog.at_level(logging.WARNING, "spectrum.tuning"):
            tuned = tune(model, SHAPE)
        assert (tuned.measured, tuned.left) == (0, 1)
        assert "another process has measured backends for over 0.1 seconds" in caplog.text
        assert tune(layer(), SHAPE).known == 1, "what is known may be read"
    assert model.spatial.backend_for(images()) == guess(images(), model.spatial.geometry)


SHARES = """
import sys, time
from pathlib import Path
import torch
from spectrum import SegmentedConv2d
from spectrum.conv.machine import machine_key
from spectrum.conv.tuning import tune
torch.set_num_threads(1)
model = torch.nn.Sequential(*(SegmentedConv2d(16, 16, segments=s, pointwise=False) for s in (1, 2, 4, 8, 16)))
machine_key("cpu")
here, other = Path(sys.argv[1]), Path(sys.argv[2])
here.touch()
while not other.exists():
    time.sleep(0.001)
tuned = tune(model, (8, 16, 6, 6), seconds=100)
print(tuned.measured, tuned.known, sorted(tuned.backends.items()))
"""


@pytest.mark.medium
def test_processes_share_one_result(tmp_path, folder):
    """Both begin at once; each class is measured by one of them, and both use the same backend."""
    places = [str(tmp_path / name) for name in "ab"]
    words = [[sys.executable, "-c", SHARES, *order] for order in (places, places[::-1])]
    processes = [subprocess.Popen(one, cwd=ROOT, stdout=subprocess.PIPE, text=True) for one in words]
    said = [process.communicate(timeout=300)[0].split(" ", 2) for process in processes]
    assert sorted((int(measured), int(known)) for measured, known, _ in said) == [(0, 5), (5, 0)]
    assert said[0][2] == said[1][2]
    assert len(json.loads(file_of(folder).read_text())["choices"]) == 5


def test_the_real_clock_finds_a_backend_for_every_layer():
    model = build_model("probe", segments=4, width=0.25).to(memory_format=LAST)
    shape = (8, 3, 32, 32)
    x_nchw = images(shape)
    with torch.no_grad():
        before = model.eval()(x_nchw)
        tuned = tune(model, shape, seconds=200)  # also on a machine that is busy
        torch.testing.assert_close(model(x_nchw), before, rtol=1e-3, atol=1e-3)
    assert tuned.left == 0
    assert set(tuned.backends) == {str(one) for one in classes_of(model, shape)}
    for one, times in tuned.times.items():  # which of them is fastest depends on how busy the machine is
        assert tuned.backends[one] in times
        assert all(0 < seconds < 10 for seconds in times.values())
    layers = [module for module in model.modules() if isinstance(module, GroupedConv2d)]
    assert all(layer.measured for layer in layers)
