"""Files that are written whole: real faults while they are written, and what was there before."""

import os
import resource
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from spectrum._files import naming, write_whole

FULL = """
import resource, signal, sys
from spectrum._files import write_whole

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    write_whole(sys.argv[1], b"x" * 1000)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("old", [None, "old"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, old: str | None) -> None:
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("file sizes are limited here already")
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    said = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(said, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    assert done.stdout == f"[Errno 27] File too large: {str(path)!r}\n"
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == ({} if old is None else {"file": old})


def test_text_is_written_as_utf_8_with_its_line_ends(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "é\r\n花\n")
    assert (tmp_path / "file").read_bytes() == "é\r\n花\n".encode()


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "\ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_is_followed_and_permissions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "花" * 85):
        write_whole(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE) as reader:
        write_whole(tmp_path / "pipe", "new")
        assert reader.communicate()[0] == b"new"
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_that_may_not_be_written_is_not_replaced() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.parent.chmod(0o777)
        path.write_text("old")
        path.chmod(0o444)
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may write everything
        try:
            with pytest.raises(PermissionError) as refused:
                write_whole(path, "new")
        finally:
            os.seteuid(user)
        assert refused.value.filename == str(path)
        assert path.read_text() == "old"


def test_a_folder_in_the_way_and_a_folder_that_is_not_there_are_named(tmp_path: Path) -> None:
    for path, kind in ((tmp_path, IsADirectoryError), (tmp_path / "no" / "file", FileNotFoundError)):
        with pytest.raises(kind) as refused:
            write_whole(path, "new")
        assert refused.value.filename == str(path)


def test_an_error_without_a_file_is_given_one() -> None:
    refused = pytest.raises(OSError, match="No space left on device: 'a file'")
    with refused, naming("a file"), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    code = (
        "import os, sys; from spectrum import _files\nfrom tests.failpoint import die_at\n"
        "die_at(_files, '_write_all', 1, 'half'); _files.write_whole(sys.argv[1], 'new and longer')"
    )
    said = [sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(said, cwd=Path(__file__).parents[1]).returncode == 9
    assert (tmp_path / "file").read_text() == "old"
