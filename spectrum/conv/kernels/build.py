"""The compiled kernels as a library: built once per machine with its C++ compiler, for its own processor.

The kernels have a plain C interface and need only the compiler's own headers. A build takes some seconds. It is kept in
the cache folder, under a hash of sources, compiler, flags and processor, so machines may share the folder. It is moved
there by renaming, so any number of processes may build at once. Without a compiler, or if the build fails, a warning
says so once, and everything runs on torch's own operations.

A second library binds the kernels to torch; it needs torch's headers and takes three times as long to build. Without it
the kernels are called from Python, after one warning.

Before a build starts, the logger "spectrum.kernels" announces it on stderr, once and in one process only;
`logging.getLogger("spectrum").setLevel(logging.ERROR)` silences it.

A failed compilation is recorded as NAME.failed next to the library's path, so that the processes of a study do not all
try again. It is tried again after a day, or once the file is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from spectrum._cache import cache_folder, is_our_own
from spectrum._files import write_whole

SOURCES = ("segmented.cpp", "norm.cpp")
HEADERS = ("interface.h", "vector.h", "planes.h", "convolve.h", "gradient.h", "direct.h", "parts.h")
BINDING, BINDING_HEADERS = ("binding.cpp",), ("interface.h",)
FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", "-march=native", "-fPIC", "-fvisibility=default")
FOLDER = Path(__file__).parent
LOGGER = logging.getLogger("spectrum.kernels")
BUILD_SECONDS = 300  # timeout of a build
RETRY_SECONDS = 24 * 3600  # time before a failed compilation is tried again


class BuildError(Exception):
    """The kernels could not be built or loaded; the message gives the reason."""


class CompilerRefused(BuildError):
    """The compiler finished without making a library."""


@cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels, built first if necessary; None, after a warning, if that fails."""
    try:
        return load(build(cache_folder() / "kernels"))
    except BuildError as error:
        warnings.warn(
            f"compiled kernels are not used: {error}. Everything runs on torch's own operations, which are several "
            "times slower at 2 to 8 channels per segment",
            stacklevel=2,
        )
        return None


@cache
def binding() -> bool:
    """Whether the kernels are torch operations, in `torch.ops.spectrum_eager`; they are built first if necessary.

    False, after a warning, if that fails, for example for lack of torch's headers: then Python calls the kernels.
    """
    import torch

    kernels = library()
    if kernels is None:
        return False
    names = ("forward", "backward", "norm_forward", "norm_evaluate", "norm_backward")
    addresses = [ctypes.cast(getattr(kernels, f"spectrum_{name}"), ctypes.c_void_p).value for name in names]
    try:
        torch.ops.load_library(build_binding(cache_folder() / "kernels"))
        torch.ops.spectrum_eager.use(addresses)
    except (BuildError, OSError, AttributeError, RuntimeError) as error:
        warnings.warn(
            f"the compiled kernels are called from Python, which is slower for small inputs: {error}", stacklevel=2
        )
        return False
    return True


def build(folder: Path, flags: tuple[str, ...] = FLAGS) -> Path:
    """The path of the kernels' library in `folder`, compiled unless a complete one exists. Raises BuildError."""
    openmp = _loaded_openmp()
    # Link torch's own OpenMP runtime by its path: a second runtime's threads would compete with torch's.
    parallel, links = (("-fopenmp",), (openmp,)) if openmp else ((), ())
    return _build(folder, SOURCES, HEADERS, (*flags, *parallel), links, _processor())


def build_binding(folder: Path) -> Path:
    """The path of the binding in `folder`, compiled for this torch unless a complete one exists. Raises BuildError."""
    import torch

    place = Path(torch.__file__).parent
    flags = ("-std=c++20", "-O1", "-w", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    headers = ("-isystem", str(place / "include"))
    links = (f"-L{place / 'lib'}", "-lc10", "-ltorch_cpu")
    return _build(folder, BINDING, BINDING_HEADERS, (*flags, *headers), links, torch.__version__)


def _build(
    folder: Path,
    sources: Sequence[str],
    headers: Sequence[str],
    flags: Sequence[str],
    links: Sequence[str],
    made_for: str,
) -> Path:
    compiler = _compiler()
    name = _key(compiler, sources, headers, (*flags, *links, made_for))
    second = _second_folder()
    for place in filter(is_our_own, (folder.resolve(), second)):
        if _is_whole(place / f"{name}.so"):
            return place / f"{name}.so"
        _raise_if_refused(place / f"{name}.failed")
    _announce()
    work = _work_folder(folder)
    path = work.parent / f"{name}.so"
    try:
        objects = [str(work / f"{Path(source).stem}.o") for source in sources]
        for source, made in zip(sources, objects, strict=True):
            _run([*compiler, *flags, "-c", str(FOLDER / source), "-o", made])
        _run([*compiler, "-shared", *objects, *links, "-o", str(work / "made.so")])
        _seal(work / "made.so")
        (work / "made.so").replace(path)
    except CompilerRefused as error:
        with contextlib.suppress(OSError):
            write_whole(path.with_suffix(".failed"), str(error))
        raise
    except OSError as error:
        raise BuildError(str(error)) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


@cache
def _announce() -> None:
    """Announce the build, as a warning, which logging shows on stderr by default."""
    if multiprocessing.parent_process() is None and os.environ.get("LOCAL_RANK", "0") == "0":
        LOGGER.warning("spectrum: compiling kernels for this processor, once; this takes about half a minute …")


def load(path: Path) -> ctypes.CDLL:
    """Open a built library. Raises BuildError; a file that cannot be opened is removed, so it is built again."""
    try:
        kernels = ctypes.CDLL(str(path))
        kernels.spectrum_lanes.restype = ctypes.c_int
        kernels.spectrum_lanes()
        pointer = ctypes.c_void_p  # declared, so that plain integers are passed as addresses
        kernels.spectrum_forward.argtypes = [pointer] * 4 + [ctypes.c_int]
        kernels.spectrum_backward.argtypes = [pointer] * 6 + [ctypes.c_int]
        kernels.spectrum_norm_forward.argtypes = [pointer] * 9
        kernels.spectrum_norm_evaluate.argtypes = [pointer] * 8
        kernels.spectrum_norm_backward.argtypes = [pointer] * 11
    except (OSError, AttributeError) as error:
        path.unlink(missing_ok=True)
        raise BuildError(f"{path}: {error}") from None
    return kernels


def _seal(path: Path) -> None:
    """Append the file's SHA-256, which loaders ignore: opening a truncated library would crash the process."""
    with path.open("ab") as file:
        file.write(hashlib.sha256(path.read_bytes()).digest())
        file.flush()
        os.fsync(file.fileno())


def _work_folder(folder: Path) -> Path:
    """A new folder to build in: inside `folder`, or in the second one for lack of space, permission or trust.

    Its files are loaded into the process, so nobody else may write to it.
    """
    second = _second_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_our_own(folder.resolve()):
            return Path(tempfile.mkdtemp(prefix="build-", dir=folder.resolve()))
        warnings.warn(
            f"kernels are not kept in {folder}: it belongs to another user, or other users may write to it. They are "
            f"kept in {second}. Set SPECTRUM_CACHE to a folder of your own, or run chmod go-w {folder}",
            stacklevel=2,
        )
    except OSError:
        pass
    try:
        second.mkdir(exist_ok=True, mode=0o700)
        if not is_our_own(second):
            raise BuildError(f"{second} belongs to another user, or other users may write to it")
        return Path(tempfile.mkdtemp(prefix="build-", dir=second))
    except OSError as error:
        raise BuildError(str(error)) from None


def _second_folder() -> Path:
    """This user's folder for temporary files, which keeps a build if the cache folder cannot be written."""
    return Path(tempfile.gettempdir()) / f"spectrum-kernels-{os.getuid()}"


def _raise_if_refused(note: Path) -> None:
    try:
        reason, age = note.read_text(encoding="utf-8"), time.time() - note.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return
    if 0 <= age < RETRY_SECONDS:  # a date in the future comes from a wrong clock
        raise CompilerRefused(f"{reason} (remove {note} to try again)")


def _is_whole(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _compiler() -> list[str]:
    """The compiler's command; $CXX may include arguments, as in make."""
    asked = shlex.split(os.environ.get("CXX", ""))
    for words in [asked] if asked else [["g++"], ["clang++"], ["c++"]]:
        found = shutil.which(words[0])
        if found:
            return [found, *words[1:]]
    raise BuildError(f"CXX={asked[0]}: no such compiler" if asked else "no C++ compiler found (install g++ or set CXX)")


def _key(compiler: list[str], sources: Sequence[str], headers: Sequence[str], others: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in (*sources, *headers):
        digest.update((FOLDER / name).read_bytes())
    version = _run([*compiler, "--version"])
    for part in (version, *compiler, *others, platform.machine()):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()[:32]


def _processor() -> str:
    """The description of the processor, which decides what -march=native may use."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    first = text.split("\n\n")[0]
    return "\n".join(line for line in first.splitlines() if re.match(r"(model name|flags|Features|CPU part)\b", line))


def _loaded_openmp() -> str | None:
    """The path of the OpenMP runtime that torch has loaded; None if unknown."""
    import torch

    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    # Another package may have loaded a second libgomp (scikit-learn has its own); torch's lies next to torch.
    found = sorted(set(re.findall(r"(/\S*/lib(?:gomp|iomp5|omp)\b[^/\s]*)$", maps, re.MULTILINE)))
    torch_folder = str(Path(torch.__file__).parent)
    return next((path for path in found if path.startswith(torch_folder)), found[0] if found else None)


def _run(words: list[str]) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", timeout=BUILD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{words[0]}: {error}") from None
    if done.returncode < 0:
        raise BuildError(f"{words[0]} was ended by signal {-done.returncode}")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise CompilerRefused(f"{words[0]} failed: {reason}")
    return done.stdout
