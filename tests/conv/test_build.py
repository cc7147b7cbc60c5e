"""Building the kernels: once per machine, by any number of processes, and not at all after a failure."""

import ctypes
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from spectrum import SegmentedConv2d
from spectrum._cache import cache_folder
from spectrum.conv.backends.choice import recorded_choice
from spectrum.conv.kernels import build, torch_operation
from spectrum.conv.seen import backends_seen

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache folder, for a process without kernels."""
    build.binding()  # that of this process, which torch takes only once
    monkeypatch.setenv("SPECTRUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    build.library.cache_clear()
    yield tmp_path / "cache" / "kernels"
    build.library.cache_clear()


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A compiler that does not optimise, and a file with one line per call of it."""
    log = tmp_path / "calls"
    no_binding = 'case "$*" in *binding*) exit 1;; esac'
    name = script(tmp_path / "quick-c++", no_binding, f'echo "$*" >> {log}', f'exec {COMPILER} "$@" -O0')
    monkeypatch.setenv("CXX", name)
    return log


@pytest.fixture(scope="module")
def built():
    """Files in this machine's own cache."""
    return build.build(cache_folder() / "kernels")


@pytest.fixture
def instant(built, tmp_path, monkeypatch):
    """A compiler that takes no time, since it copies earlier results."""
    name = script(
        tmp_path / "instant-c++",
        'for last; do :; done; [ "$1" = --version ] && exec echo 1.0',
        f'[ "$1" = -shared ] && exec cp {built} "$last"; echo > "$last"',
    )
    monkeypatch.setenv("CXX", name)
    return name


def run(code, **environment):
    """A Python process; a variable given as None is removed from its environment."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.split("\n")[:-1]


def convolves_exactly():
    module = SegmentedConv2d(12, 12, segments=3, pointwise=False)
    x_nchw = torch.randn(2, 12, 5, 5).contiguous(memory_format=torch.channels_last)
    exact = F.conv2d(x_nchw.double(), module.spatial.weights[0].double(), padding=1, groups=3)
    return bool((module(x_nchw) - exact).abs().max() < 1e-5)


# Built once


@pytest.mark.medium
def test_the_second_process_starts_no_compilation(fresh, quick):
    path = build.build(fresh)
    compiled = [line for line in quick.read_text().splitlines() if "--version" not in line]
    assert len(compiled) == len(build.SOURCES) + 1
    quick.unlink()
    assert build.build(fresh) == path
    assert [line for line in quick.read_text().splitlines() if "--version" not in line] == []
    assert list(fresh.iterdir()) == [path]
    assert build.load(path).spectrum_lanes() in (4, 8, 16)


def test_another_compiler_other_flags_and_other_sources_make_another_library(fresh, instant, tmp_path, monkeypatch):
    first = build.build(fresh)
    assert build.build(fresh, (*build.FLAGS, "-DSPECTRUM_LANES=4")) != first
    monkeypatch.setenv("CXX", script(tmp_path / "other-c++", f'[ "$1" = --version ] && exec echo 2.0; {instant} "$@"'))
    assert build.build(fresh) != first
    monkeypatch.setenv("CXX", instant)
    sources = tmp_path / "sources"
    shutil.copytree(build.FOLDER, sources)
    monkeypatch.setattr(build, "FOLDER", sources)
    assert build.build(fresh) == first
    for name in (*build.SOURCES, *build.HEADERS):
        with (sources / name).open("a") as file:
            file.write("\n// changed")
        changed = build.build(fresh)
        assert changed != first
        first = changed


def test_the_library_is_kept_under_the_cache_folder(fresh, instant):
    assert recorded_choice() == "auto"
    assert [path.suffix for path in fresh.iterdir()] == [".so"]
    assert convolves_exactly()


def test_every_source_is_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = ROOT / "spectrum"
    packaged = {
        path for glob in project["tool"]["setuptools"]["package-data"]["spectrum"] for path in package.glob(glob)
    }
    there = {path for path in build.FOLDER.iterdir() if path.suffix in (".cpp", ".h")}
    assert there <= packaged
    assert there == {build.FOLDER / name for name in (*build.SOURCES, *build.HEADERS, *build.BINDING)}


TOGETHER = """
import sys, torch
print("ready", flush=True)
sys.stdin.readline()
from tests.conv.test_build import convolves_exactly, recorded_choice
assert recorded_choice() == "auto"
assert convolves_exactly()
"""


@pytest.mark.slow
def test_any_number_of_processes_may_build_at_once(fresh, quick):
    variables = {"SPECTRUM_CACHE": str(fresh.parent), "CXX": os.environ["CXX"], "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-W", "ignore:the compiled kernels are called", "-c", TOGETHER],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert sorted(path.suffix for path in fresh.iterdir()) == [".failed", ".so"]  # the binding and the kernels
    assert sum("-shared" in line for line in quick.read_text().splitlines()) > 1  # they did so at once


# The binding


def test_the_kernels_are_bound_to_torch_once_for_all():
    folder = cache_folder() / "kernels"
    assert build.binding()
    path = build.build_binding(folder)
    assert build.build_binding(folder) == path != build.build(folder)
    assert torch_operation.bound("segmented_conv2d")
    assert torch_operation.bound("batch_norm_act")


@pytest.mark.medium
def test_kernels_that_cannot_be_bound_are_called_from_python(fresh, quick):
    """As with a torch that lacks its headers."""
    code = """
import warnings
from spectrum.conv.kernels import build, torch_operation
from tests.conv.test_build import convolves_exactly, recorded_choice
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert [recorded_choice(), recorded_choice()] == 2 * ["auto"] and convolves_exactly()
print(build.binding(), torch_operation.bound("segmented_conv2d"), *[warning.message for warning in caught])
"""
    for remark in ("failed: no reason given", "to try again"):  # in a first process and in a second
        (answer,) = said(run(code, SPECTRUM_CACHE=str(fresh.parent), SPECTRUM_BACKEND=None))
        assert answer.startswith("False None the compiled kernels are called from Python, which is slower")
        assert remark in answer
        assert answer.count("slower") == 1


# Where no library comes about


@pytest.mark.medium
@pytest.mark.parametrize("environment", [{"CXX": "/nonexistent"}, {"CXX": None, "PATH": ""}], ids=["CXX", "PATH"])
def test_without_a_compiler_torch_does_it_and_that_is_said_once(environment, tmp_path):
    code = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from tests.conv.test_build import convolves_exactly, recorded_choice
    assert [recorded_choice(), recorded_choice()] == 2 * ["library"]
    assert convolves_exactly()
    from spectrum.conv.norm import BatchNormAct2d
    import torch
    BatchNormAct2d(4)(torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last))
for warning in caught:
    print(warning.message)
import os
os.environ["SPECTRUM_BACKEND"] = "compiled"
try:
    recorded_choice()
except ValueError as error:
    print(error)
"""
    warning, refusal = said(run(code, SPECTRUM_CACHE=str(tmp_path), SPECTRUM_BACKEND=None, **environment))
    assert warning.startswith("compiled kernels are not used: ")
    reason = "CXX=/nonexistent: no such compiler" if "PATH" not in environment else "no C++ compiler found (install g++"
    assert reason in warning
    assert refusal.startswith("SPECTRUM_BACKEND=compiled: the kernels could not be built here; try auto")


@pytest.mark.parametrize("choice", ["native", "coalesced"])
def test_a_backend_of_torchs_needs_no_compiler_and_builds_nothing(choice, fresh, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.setenv("SPECTRUM_BACKEND", choice)
    assert recorded_choice() == choice
    assert convolves_exactly()
    assert not fresh.parent.exists()


@pytest.mark.parametrize("works_until", ["-c", "-shared", "--version"])
def test_a_compiler_that_fails_is_quoted(works_until, fresh, tmp_path, monkeypatch):
    lines = [f'case " $* " in *" {works_until} "*) echo "the disk is on fire" >&2; echo more >&2; exit 1;; esac']
    monkeypatch.setenv(
        "CXX",
        script(
            tmp_path / "bad-c++", *lines, '[ "$1" = --version ] || for last; do :; done && echo > "${last:-/dev/null}"'
        ),
    )
    with pytest.warns(
        UserWarning, match="compiled kernels are not used: .*bad-c.. failed: the disk is on fire. Every"
    ) as w:
        assert [recorded_choice(), recorded_choice()] == 2 * ["library"]
    assert len(w) == 1
    assert convolves_exactly()
    assert not fresh.exists() or {path.suffix for path in fresh.iterdir()} <= {".failed"}


def test_what_the_compiler_refused_is_not_tried_again_for_a_day(fresh, tmp_path, monkeypatch):
    log = tmp_path / "calls"
    lines = ['[ "$1" = --version ] && exec echo 1.0', f"echo call >> {log}", "echo no such header >&2; exit 1"]
    monkeypatch.setenv("CXX", script(tmp_path / "bad-c++", *lines))
    for _ in range(2):
        with pytest.raises(build.BuildError, match="no such header"):
            build.build(fresh)
    assert log.read_text().count("call") == 1
    (note,) = fresh.iterdir()
    with pytest.raises(build.BuildError, match=f"remove {note} to try again"):
        build.build(fresh)
    os.utime(note, (0, 0))
    with pytest.raises(build.BuildError, match=r"no such header$"):
        build.build(fresh)
    assert log.read_text().count("call") == 2


def test_a_compiler_that_was_killed_is_tried_again(fresh, tmp_path, monkeypatch):
    log = tmp_path / "calls"
    lines = ['[ "$1" = --version ] && exec echo 1.0', f"echo call >> {log}", "kill -9 $$"]
    monkeypatch.setenv("CXX", script(tmp_path / "bad-c++", *lines))
    for _ in range(2):
        with pytest.raises(build.BuildError, match="signal 9"):
            build.build(fresh)
    assert log.read_text().count("call") == 2


@pytest.mark.parametrize(
    "lines",
    [["exit 1"], ["kill -9 $$"], ["exit 0"], ['for last; do :; done; echo nothing > "$last"']],
    ids=["silent", "killed", "makes nothing", "makes no library"],
)
def test_a_compiler_that_does_not_do_its_work_is_no_fault_of_the_network(lines, fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "bad-c++", '[ "$1" = --version ] && exec echo 1.0', *lines))
    with pytest.warns(UserWarning, match="compiled kernels are not used"):
        assert recorded_choice() == "library"
    assert convolves_exactly()
    assert {path.suffix for path in fresh.iterdir()} <= {".failed"}


def test_a_file_that_is_no_program_is_no_compiler(fresh, tmp_path, monkeypatch):
    path = tmp_path / "no-program"
    path.write_text("none")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    with pytest.warns(UserWarning, match="compiled kernels are not used: .*no-program"):
        assert recorded_choice() == "library"


def test_a_compiler_that_hangs_is_given_up(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "BUILD_SECONDS", 0.2)
    monkeypatch.setenv("CXX", script(tmp_path / "slow-c++", "exec sleep 20"))
    with pytest.warns(UserWarning, match="timed out"):
        assert recorded_choice() == "library"


def test_a_compiler_may_speak_any_language(fresh, tmp_path, monkeypatch):
    lines = ['[ "$1" = --version ] && exec echo 1.0', "printf 'caf\\351\\n' >&2; exit 1"]
    monkeypatch.setenv("CXX", script(tmp_path / "latin-c++", *lines))
    with pytest.warns(UserWarning, match="compiled kernels are not used: .*caf"):
        assert recorded_choice() == "library"


def test_the_compiler_variable_may_hold_arguments_as_for_make(fresh, instant, monkeypatch):
    monkeypatch.setenv("CXX", f"/usr/bin/env {instant}")
    assert build.build(fresh).exists()


# The cache folder


def cannot_be_written(folder):
    folder.parent.mkdir(parents=True)
    folder.mkdir(mode=0o500)


def lies_below_a_file(folder):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file")


@pytest.mark.parametrize(
    "spoil",
    [
        lies_below_a_file,
        pytest.param(cannot_be_written, marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")),
    ],
)
def test_without_a_cache_folder_a_build_is_kept_among_the_temporary_files(spoil, fresh, instant, tmp_path, monkeypatch):
    spoil(fresh)
    assert recorded_choice() == "auto"
    assert convolves_exactly()
    (path,) = build._second_folder().iterdir()
    assert build._second_folder().parent == tmp_path
    assert build._second_folder().stat().st_mode & 0o077 == 0
    monkeypatch.setattr(build, "_work_folder", None)  # nothing is built
    assert build.build(fresh) == path


def test_a_folder_that_others_may_write_to_is_not_trusted(fresh, instant):
    lies_below_a_file(fresh)
    build._second_folder().mkdir()
    build._second_folder().chmod(0o777)
    with pytest.raises(build.BuildError, match="other users may write"):
        build.build(fresh)


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_cache_folder_that_others_may_write_to_is_not_loaded_from(mode, fresh, instant):
    planted = build.build(fresh)
    fresh.chmod(mode)
    with pytest.warns(
        UserWarning, match="kernels are not kept in .*: it belongs to another user, or other users may write"
    ):
        path = build.build(fresh)
    assert path.parent == build._second_folder() != planted.parent
    assert build.build(fresh) == path, "the warning comes with a build only"
    fresh.chmod(0o755)
    assert build.build(fresh) == planted


def test_a_build_that_fails_outside_the_cache_leaves_its_reason_only(fresh, tmp_path, monkeypatch):
    lies_below_a_file(fresh)
    monkeypatch.setenv("CXX", script(tmp_path / "bad-c++", '[ "$1" = --version ] && exec echo 1.0; exit 1'))
    with pytest.warns(UserWarning, match="compiled kernels are not used"):
        assert recorded_choice() == "library"
    assert {path.suffix for path in build._second_folder().iterdir()} == {".failed"}


DAMAGES = {
    "empty": lambda whole: b"",
    "a few bytes": lambda whole: whole[:100],
    "garbage": lambda whole: b"\x07" * len(whole),
    "zeros": lambda whole: bytes(len(whole)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_library_is_built_anew(damage, fresh, instant):
    path = build.build(fresh)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert recorded_choice() == "auto"
    assert path.stat().st_size == len(whole)
    assert convolves_exactly()


def test_a_library_without_the_kernels_is_built_anew(fresh, instant, tmp_path):
    path = build.build(fresh)
    (tmp_path / "empty.cpp").write_text("int nothing;")
    subprocess.run([COMPILER, "-shared", "-fPIC", str(tmp_path / "empty.cpp"), "-o", str(path)], check=True)
    assert recorded_choice() == "auto"
    assert convolves_exactly()


@pytest.mark.medium
def test_half_a_library_stops_no_process(fresh, instant):
    """A partial library, as left by a full disk or a power cut. Runs in its own process."""
    path = build.build(fresh)
    os.truncate(path, path.stat().st_size // 2)
    said(run("from tests.conv.test_build import *; recorded_choice()", SPECTRUM_CACHE=str(fresh.parent)))


def test_a_module_that_was_made_with_kernels_runs_where_there_are_none(fresh, tmp_path, instant, monkeypatch):
    torch.save(SegmentedConv2d(12, 12, segments=3, pointwise=False), tmp_path / "module.pt")
    build.library.cache_clear()
    monkeypatch.setenv("CXX", "/nonexistent")
    with pytest.warns(UserWarning, match="compiled kernels are not used"):
        build.library()
    module = torch.load(tmp_path / "module.pt", weights_only=False)
    assert module(torch.randn(2, 12, 5, 5)).shape == (2, 12, 5, 5)


# Threads


@pytest.mark.medium
def test_the_kernels_bring_no_second_runtime_of_threads():
    code = """
import re, torch
from pathlib import Path
def runtimes():
    return set(re.findall(r"/\\S*/lib(?:gomp|iomp5|omp)\\b\\S*", Path("/proc/self/maps").read_text()))
torch.randn(64, 64) @ torch.randn(64, 64)
before = runtimes()
from tests.conv.test_build import convolves_exactly, recorded_choice
assert recorded_choice() == "auto" and convolves_exactly()
print(len(before), runtimes() == before)
"""
    number, same = said(run(code, SPECTRUM_BACKEND=None))[0].split()
    assert int(number) == 1
    assert same == "True"


def test_the_kernels_are_linked_to_torchs_runtime():
    openmp = build._loaded_openmp()
    assert openmp is not None
    assert str(Path(torch.__file__).parent) in openmp
    loaded = ctypes.CDLL(openmp)
    kernels = build.library()
    assert ctypes.cast(kernels.omp_get_num_threads, ctypes.c_void_p).value == (
        ctypes.cast(loaded.omp_get_num_threads, ctypes.c_void_p).value
    )


# What is said of a build

SAID = "spectrum: compiling kernels for this processor, once; this takes about half a minute"


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["", "import logging; logging.getLogger('spectrum').setLevel(logging.ERROR); "])
def test_a_first_use_that_compiles_says_so_once_on_stderr_unless_logging_is_told_not_to(fresh, instant, imports):
    code = f"{imports}from spectrum import SegmentedConv2d; [SegmentedConv2d(4, 4) for _ in range(3)]; print('made')"
    variables = {"SPECTRUM_CACHE": str(fresh.parent), "SPECTRUM_BACKEND": None}
    process = run(f"import warnings; warnings.simplefilter('ignore'); {code}", **variables)
    out, err = process.communicate(timeout=120)
    assert (out, process.returncode) == ("made\n", 0)
    assert err.count(SAID) == (0 if imports else 1)
    out, err = run(f"import warnings; warnings.simplefilter('ignore'); {code}", **variables).communicate(timeout=120)
    assert (out, err) == ("made\n", "")  # what is built is built


@pytest.mark.parametrize("place", ["worker", "rank", "first rank"])
def test_of_several_processes_one_says_that_it_compiles(fresh, instant, caplog, monkeypatch, place):
    build._announce.cache_clear()
    if place == "worker":
        monkeypatch.setattr(build.multiprocessing, "parent_process", lambda: object())
    else:
        monkeypatch.setenv("LOCAL_RANK", "1" if place == "rank" else "0")
    build.build(fresh)
    assert [SAID in record.getMessage() for record in caplog.records] == ([True] if place == "first rank" else [])
    build._announce.cache_clear()


def test_a_module_on_meta_starts_no_compiler_until_it_has_numbers(fresh, instant):
    module = SegmentedConv2d(12, 12, segments=3, norm=True, device="meta")
    assert not fresh.exists()
    assert module(torch.empty(2, 12, 5, 5, device="meta")).shape == (2, 12, 5, 5)
    assert not fresh.exists()
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    x_nchw = torch.randn(2, 12, 5, 5).contiguous(memory_format=torch.channels_last)
    with backends_seen(module) as seen:
        y_nchw = module(x_nchw)
    assert seen == {"": "compiled"}
    assert [path.suffix for path in fresh.iterdir()] == [".so"]
    assert y_nchw.isfinite().all()
