"""Your own data sets: arrays by name, the same in every process; invalid ones are refused with the reason."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from spectrum import Arrays, load_results, register_dataset
from spectrum._records import SpecError
from spectrum.cli import main
from spectrum.data.load import load_images
from spectrum.data.pixels import DataError
from spectrum.design import own_data
from spectrum.design.own_modules import check_workers_know, modules_of, registered
from tests.registries import restored

LABELS = np.arange(60) % 3
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 10, 10, 3), dtype=np.uint8)
MODULE = """
import numpy as np
from spectrum import Arrays, register_dataset


def stripes():
    labels = np.arange(120) % 2
    pixels = np.random.default_rng(0).integers(0, 128, (120, 8, 8), dtype=np.uint8)
    pixels[labels == 0, ::2] = 255
    pixels[labels == 1, :, ::2] = 255
    return Arrays(pixels, labels, classes=("rows", "columns"))


register_dataset("stripes", stripes)
"""
STUDY = """
import = ["my_data"]
[base]
dataset = "stripes"
train_images = 40
batch_size = 20
epochs = 1
width = 0.1
[axes]
segments = [1, 2]
seed = [0]
"""


@pytest.fixture
def registry(monkeypatch):
    restored(monkeypatch, own_data.DATASETS)


def given_by(**arrays):
    own_data.DATASETS._entries.pop("made up", None)  # another loader of this name would be refused
    register_dataset("made up", lambda: Arrays(**{"train_x": PIXELS, "train_y": LABELS} | arrays))
    return load_images("made up")


def test_arrays_are_the_images_channels_first(registry):
    images = given_by(test_x=PIXELS[:9], test_y=LABELS[:9], classes=("a", "b", "c"))
    assert images.train_x.dtype == torch.uint8
    assert np.array_equal(images.train_x.numpy().transpose(0, 2, 3, 1), PIXELS)
    assert np.array_equal(images.train_y.numpy(), LABELS)
    assert np.array_equal(images.test_x.numpy().transpose(0, 2, 3, 1), PIXELS[:9])
    assert (images.classes, images.shape, images.about.classes) == (3, (3, 10, 10), ("a", "b", "c"))
    assert images.about.notes == ("9 of 9 test images are training images too",)


def test_without_test_images_a_balanced_sixth_is_carved_off_and_no_image_is_lost_or_doubled(registry):
    images = given_by()
    assert images.test_y.bincount().tolist() == [3, 3, 3]
    rows = [*map(bytes, images.train_x.numpy()), *map(bytes, images.test_x.numpy())]
    assert sorted(rows) == sorted(map(bytes, np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))))
    assert "carved off" in images.about.test


@pytest.mark.parametrize("resize", ["stretch", "centre_crop"])
@pytest.mark.parametrize("grey", [False, True])
def test_images_are_resized_as_the_same_pixels_in_files_are(registry, tmp_path, resize, grey):
    pixels = PIXELS[..., 0] if grey else PIXELS
    for split, which in (("train", range(30)), ("test", range(30, 60))):
        for n in which:
            folder = tmp_path / "files" / split / str(LABELS[n])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[n]).save(folder / f"{n:03}.png")
    read = load_images(str(tmp_path / "files"), 5, resize)
    register_dataset("arrays", lambda: Arrays(pixels[:30], LABELS[:30], pixels[30:], LABELS[30:]))
    given = load_images("arrays", 5, resize)
    for split in ("train_x", "test_x"):
        one, other = (sorted(map(bytes, getattr(images, split)[:].numpy())) for images in (read, given))
        assert one == other


def test_tensors_are_taken_as_arrays_are(registry):
    plain = given_by().fingerprint
    assert given_by(train_x=torch.from_numpy(PIXELS), train_y=torch.from_numpy(LABELS)).fingerprint == plain
    assert given_by(train_y=LABELS.astype(np.uint8)).fingerprint == plain
    changed = PIXELS.copy()
    changed[7, 0, 0, 0] ^= 1
    assert given_by(train_x=changed).fingerprint != plain, "every call reads the arrays as they are now"


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"train_x": PIXELS / 255}, "train_x: float64; expected uint8"),
        ({"train_x": PIXELS.tolist()}, "train_x: list; expected an array"),
        ({"train_x": None}, "train_x: NoneType; expected an array"),
        ({"train_x": PIXELS.transpose(0, 3, 1, 2)}, r"train_x: shape \(60, 3, 10, 10\); expected images"),
        ({"train_x": PIXELS[..., :2]}, r"train_x: shape \(60, 10, 10, 2\); expected images"),
        ({"train_x": PIXELS[0, 0]}, r"train_x: shape \(10, 3\); expected images"),
        ({"train_x": PIXELS[:0], "train_y": LABELS[:0]}, r"train_x: shape \(0, 10, 10, 3\)"),
        ({"train_x": PIXELS[:, :, :8]}, "train_x: images are 10×8; set image_size to make them square"),
        ({"train_y": LABELS[:-1]}, "train_y: 59 labels for 60 images"),
        ({"train_y": LABELS.astype(float)}, "train_y: float64"),
        ({"train_y": LABELS > 0}, "train_y: bool"),
        ({"train_y": LABELS[:, None]}, r"train_y: int64 of shape \(60, 1\)"),
        ({"train_y": LABELS - 1}, "train_y: the label -1"),
        ({"train_y": LABELS * 2}, "train_y: no image has the label 1, though there are labels up to 4"),
        ({"train_y": LABELS * 0}, "train_y: one class"),
        ({"classes": ("a", "b")}, "classes: 2 names for 3 labels"),
        ({"classes": "abc"}, "classes: 'abc'; expected names"),
        ({"classes": (1, 2, 3)}, "classes: .*; expected names"),
        ({"test_x": PIXELS}, "give both test_x and test_y, or neither"),
        ({"test_y": LABELS}, "give both test_x and test_y, or neither"),
        ({"test_x": PIXELS, "test_y": LABELS + 1}, "test_y: the label 3 has no training image"),
        (
            {"test_x": PIXELS[:, :5], "test_y": LABELS},
            "test_x: images of 5×10 pixels and 3 channels, but",
        ),
        ({"test_x": PIXELS[..., 0], "test_y": LABELS}, "test_x: images of 10×10 pixels and 1 channel, but train_x has"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused_by_name(registry, arrays, why):
    with pytest.raises(DataError, match=rf"^dataset='made up': {why}"):
        given_by(**arrays)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.float32, np.bool_, np.uint16]),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    ),
    hnp.arrays(
        st.sampled_from([np.int64, np.uint8, np.float32]),
        hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=5),
        elements=st.integers(0, 3),
    ),
)  # fmt: skip
def test_whatever_a_loader_gives_is_a_data_set_or_refused_as_data(registry, x, y):
    """Compared with the rule in words, as in the message."""
    is_images = x.dtype == np.uint8 and x.size and (x.ndim == 3 or (x.ndim == 4 and x.shape[-1] in (1, 3)))
    is_images = is_images and x.shape[1] == x.shape[2]
    is_labels = y.dtype != np.float32 and y.ndim == 1 and len(y) > 0
    whole = is_labels and len(set(y.tolist())) == y.max() + 1 >= 2
    own_data.DATASETS._entries.pop("any", None)
    register_dataset("any", lambda: Arrays(x, y))
    if is_images and whole and len(x) == len(y):
        images = load_images("any")
        assert len(images.train_y) + len(images.test_y) == len(y)
    else:
        with pytest.raises(DataError, match=r"^dataset='any': "):
            load_images("any")


def test_a_loader_that_fails_or_gives_something_else_is_named(registry):
    register_dataset("fails", lambda: 1 / 0)
    with pytest.raises(DataError, match="dataset='fails': its loader fails: ZeroDivisionError"):
        load_images("fails")
    register_dataset("of nothing", dict)
    with pytest.raises(DataError, match=r"'of nothing': its loader gave dict; return spectrum\.Arrays"):
        load_images("of nothing")


@pytest.mark.parametrize("name", ["", " ", "a/b", "./a", "~a", 3, None, "digits", "cifar10", "gaussian"])
def test_a_name_that_cannot_be_or_is_taken_is_refused(registry, name):
    with pytest.raises(ValueError, match=r"expected a name|is registered already"):
        register_dataset(name, lambda: None)


def test_another_loader_of_the_same_name_is_refused_and_the_same_one_is_not(registry):
    def mine():
        return Arrays(PIXELS, LABELS)

    register_dataset("mine", mine)
    register_dataset("mine", mine)
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register_dataset("mine", dict)
    with pytest.raises(ValueError, match="must return Arrays"):
        register_dataset("other", PIXELS)


def test_a_name_that_is_nearly_one_is_suggested(registry):
    register_dataset("stripes", dict)
    with pytest.raises(DataError, match=r"did you mean 'stripes'\?"):
        load_images("stripse")


@pytest.mark.medium
def test_a_study_of_ones_own_arrays_runs_in_worker_processes_and_keeps_their_hash(study_folder):
    (study_folder / "my_data.py").write_text(MODULE)
    (study_folder / "s.toml").write_text(STUDY)
    words = [sys.executable, "-m", "spectrum", "run", "s.toml", "--workers", "2"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "stripes: 2 classes · 8×8 pixels, 1 channel · 40 training, 10 validation and 20 test images" in done.stdout
    planned = subprocess.run(
        [sys.executable, "-m", "spectrum", "plan", "s.toml", "--verbose"], capture_output=True, text=True
    )
    assert "stripes: 100 training and 20 test images" in planned.stdout
    assert "arrays of my_data.stripes" in planned.stdout
    rows = load_results("results/s")
    assert rows["status"].tolist() == ["done", "done"]
    (first,) = {row["data_fingerprint"] for row in rows["provenance"]}
    (study_folder / "my_data.py").write_text(MODULE.replace("default_rng(0)", "default_rng(1)"))
    again = subprocess.run([*words, "--segments", "3"], capture_output=True, text=True)
    assert again.returncode == 2, "an axis varies it"
    (study_folder / "s.toml").write_text(STUDY.replace("[1, 2]", "[1, 2, 3]"))
    changed = subprocess.run(words, capture_output=True, text=True)
    assert changed.returncode == 2
    assert "trained on other images of 'stripes'" in changed.stderr
    assert len(first) == 16


def test_workers_that_cannot_see_a_data_set_are_told_of_before_they_start(registry):
    own_data.DATASETS.add("of a cell", dict, maker=dict, home="__main__")
    with pytest.raises(SpecError, match=r"dataset = 'of a cell': worker processes cannot see .*my_datasets"):
        check_workers_know(registered([], ["of a cell"]), [], elsewhere=True)
    register_dataset("of a file", dict)
    assert modules_of(registered([], ["of a file", "digits"]), ["json"]) == ("json", __name__)


def test_an_unknown_name_says_how_to_register_one(study_folder, capsys):
    (study_folder / "s.toml").write_text(STUDY.replace('import = ["my_data"]', ""))
    assert main(["plan", "s.toml"]) == 2
    assert "your own arrays: register_dataset" in capsys.readouterr().err


# .npz files


def saved(path, **arrays):
    np.savez(path, **{"train_x": PIXELS, "train_y": LABELS} | arrays)
    return str(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_gives_what_its_arrays_give(registry, tmp_path, save):
    arrays = {"train_x": PIXELS[9:], "train_y": LABELS[9:], "test_x": PIXELS[:9], "test_y": LABELS[:9]}
    save(tmp_path / "mine.npz", **arrays, classes=["a", "b", "c"])
    images, given = load_images(str(tmp_path / "mine.npz")), given_by(**arrays, classes=("a", "b", "c"))
    assert images.fingerprint == given.fingerprint
    assert (images.about.read, images.about.test) == ("an .npz file", "test_x of the file")
    assert images.about.classes == ("a", "b", "c")
    assert load_images(str(tmp_path / "mine.npz"), 5).shape == (3, 5, 5)


def test_an_npz_file_without_test_images_is_split_and_changes_are_seen(registry, tmp_path):
    name = saved(tmp_path / "mine.npz")
    images = load_images(name)
    assert images.fingerprint == given_by().fingerprint
    assert "carved off" in images.about.test
    changed = PIXELS.copy()
    changed[7, 0, 0, 0] ^= 1
    assert load_images(saved(tmp_path / "mine.npz", train_x=changed)).fingerprint != images.fingerprint


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x_val": PIXELS}, "has the arrays train_x, train_y, x_val; expected train_x and train_y"),
        ({"train_y": LABELS[:-1]}, "train_y: 59 labels for 60 images"),
        ({"train_x": PIXELS / 255}, "train_x: float64; expected uint8"),
        ({"test_x": PIXELS}, "give both test_x and test_y, or neither"),
        ({"classes": [1, 2, 3]}, r"classes: int64 of shape \(3,\); expected names"),
        ({"classes": ["a", "b"]}, "classes: 2 names for 3 labels"),
        ({"train_y": LABELS.astype(object)}, "cannot be read: Object arrays cannot be loaded when allow_pickle=False"),
    ],
)
def test_npz_files_that_are_no_data_set_are_refused(tmp_path, arrays, why):
    name = saved(tmp_path / "mine.npz", **arrays)
    with pytest.raises(DataError, match=rf"^dataset='.*mine\.npz': {why}"):
        load_images(name)


def test_other_files_are_refused_as_npz_files(tmp_path):
    with pytest.raises(DataError, match="no such file; give its path"):
        load_images(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("train_x")
    np.save((tmp_path / "one.npy"), PIXELS)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    np.savez(tmp_path / "whole.npz", train_x=PIXELS, train_y=LABELS)
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:9000])
    for name, said in (("text", "cannot be read"), ("one", "is one array"), ("half", "cannot be read")):
        with pytest.raises(DataError, match=said):
            load_images(str(tmp_path / f"{name}.npz"))


@pytest.mark.medium
def test_a_study_trains_on_an_npz_file_and_refuses_a_changed_one(study_folder, capsys):
    saved("mine.npz")
    said = '[base]\ndataset = "./mine.npz"\ntrain_images = 20\nbatch_size = 10\nepochs = 1\nwidth = 0.1\n'
    (study_folder / "s.toml").write_text(said)
    assert main(["run", "s.toml", "--workers", "1"]) == 0
    assert set(load_results("results/s")["status"]) == {"done"}
    saved("mine.npz", train_x=255 - PIXELS)
    (study_folder / "s.toml").write_text(f"{said}[axes]\nseed = [0, 1]\n")
    assert main(["run", "s.toml", "--workers", "1"]) == 2
    assert "other images of './mine.npz'" in " ".join(capsys.readouterr().err.split())
