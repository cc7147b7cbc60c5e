"""Meaning of the paths of files: rules that open no file, and the walk that finds the files."""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrum.data.layout import Layout, LayoutError, Tree, arrange, walk


def tree(*paths: str, folders: tuple[str, ...] = ()) -> Tree:
    """Files by their paths; a path with "*3" stands for three files."""
    files = []
    for path in paths:
        name, _, count = path.partition("*")
        stem, dot, ending = name.rpartition(".")
        files += [f"{stem}{n}{dot}{ending}" for n in range(int(count))] if count else [path]
    every = {parent.parts for path in files for parent in Path(path).parents if parent.parts}
    return Tree([Path(path).parts for path in files], [*every, *(Path(folder).parts for folder in folders)])


def used(layout: Layout) -> dict[str, dict[str, int]]:
    """Images by split and class."""
    return {split: dict(Counter(file.label for file in files)) for split, files in layout.splits.items()}


def read(*paths: str, folders: tuple[str, ...] = ()) -> tuple[dict[str, dict[str, int]], str, str]:
    layout = arrange(tree(*paths, folders=folders))
    return used(layout), "; ".join(layout.left_out), "; ".join(layout.notes)


CLASSES = ("a/x.png*3", "b/x.png*2")
BOTH = {"train": {"a": 3, "b": 2}}


@pytest.mark.parametrize(
    "name", ["test_1.png", "my test.png", "val-2.jpg", "train.png", "fastest.png", "validation.webp"]
)
def test_the_name_of_an_image_changes_nothing(name: str) -> None:
    counts, left_out, _ = read(*CLASSES, f"a/{name}")
    assert counts == {"train": {"a": 4, "b": 2}}
    assert left_out == ""


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("TRAIN", "Test"),
        ("Training", "testing"),
        ("train", "val"),
        ("Train", "VALID"),
        ("train", "Validation"),
        ("train", "dev"),
    ],
)
def test_split_folders_are_known_in_any_case(train: str, test: str) -> None:
    counts, left_out, _ = read(f"{train}/a/1.png", f"{train}/b/2.png", f"{test}/a/3.png", f"{test}/b/4.png")
    assert [*counts.values()] == [{"a": 1, "b": 1}] * 2
    assert left_out == ""


def test_of_test_and_validation_the_test_split_is_used_and_the_other_is_counted() -> None:
    files = [f"{split}/{label}/{n}.png" for split in ("train", "val", "test") for label in "ab" for n in range(3)]
    counts, left_out, _ = read(*files)
    assert counts == {"train": {"a": 3, "b": 3}, "test": {"a": 3, "b": 3}}
    assert "6 images in val/: the test set is test/" in left_out


@pytest.mark.parametrize("name", ["test", "train", "val", "Validation"])
def test_a_class_may_be_called_like_a_split(name: str) -> None:
    counts, _, notes = read("a/1.png", f"{name}/2.png")
    assert counts == {"train": {"a": 1, name: 1}}
    assert f"{name}/ holds images itself, and so is a class" in notes
    counts, _, _ = read(*(f"{split}/{label}/1.png" for split in ("train", "test") for label in ("a", name)))
    assert counts == {"train": {"a": 1, name: 1}, "test": {"a": 1, name: 1}}


def test_a_folder_below_a_class_folder_counts_in_its_class() -> None:
    counts, _, notes = read(*CLASSES, "a/more/y.png", "a/more/and/more/z.png")
    assert counts == {"train": {"a": 5, "b": 2}}
    assert "2 images in folders below their class folder (a/more/and/more/z.png counts as 'a')" in notes or (
        "2 images in folders below their class folder (a/more/y.png counts as 'a')" in notes
    )
    counts, _, _ = read(
        *(f"{split}/{path}" for split in ("train", "test") for path in ("a/1.png", "b/1.png", "b/c/2.png"))
    )
    assert counts == {"train": {"a": 1, "b": 2}, "test": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["fold1/a/1.png", "fold1/b/1.png", "fold2/a/1.png"], "fold1/ holds no images itself, only folders of images"),
        (["photos/a/1.png", "photos/b/1.png"], "photos/ holds no images itself, only folders of images"),
        (["train/plants/a/1.png", "train/plants/b/1.png"], "train/plants/ holds no images itself"),
        (["a/train/1.png", "a/test/1.png", "a/0.png", "b/1.png"], "a/test/: a split below a class|a/train/: a split"),
        (["train/1.png", "test/2.png"], "test/ and train/ hold images, but no folders of classes"),
        (["test/a/1.png", "test/b/1.png"], "test/ holds folders of images, but there is no train/"),
        (["a/1.png", "b/1.png", "test/a/1.png"], "test/ holds folders of images, but there is no train/"),
        (
            ["train/2019/1.png", "train/2020/1.png", "car/1.png"],
            "train/ holds folders of images, .* beside it lies car/",
        ),
        (["train/a/1.png", "train/b/1.png", "Train/a/1.png"], "Train/ and train/ both name the train split"),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/b/1.png"],
            "val/ and valid/ both name the validation",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/2.png"],
            "class 'b' of train/ has no images in test/",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "test/c/2.png"],
            "class 'c' of test/ has no images in train/",
        ),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], "class 'b' of train/ has no images in test/"),
        (["a/1.png"], r"at least two classes, got one \('a'\)"),
        (["1.png", "2.png"], r"its 2 images \(1.png, 2.png\) lie in no class folder"),
        (["photos.zip"], r"holds no folder with images; found 1 archive not unpacked \(photos.zip\)"),
        (["a/1.heic", "b/2.heic"], r"found 2 images in a format that is not read, .heic"),
        (["notes.txt"], r"holds no folder with images; found 1 other file not read \(notes.txt\)"),
        ([], "holds no folder with images. Put the images"),
    ],
)
def test_what_may_mean_two_things_or_nothing_is_refused(paths: list[str], said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        read(*paths)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("loose.png", "1 image in no class folder (loose.png)"),
        ("a/.hidden.png", "1 image hidden: a name begins with a dot (a/.hidden.png)"),
        (".trash/c/1.png", "1 image hidden"),
        ("a/1.heic", "1 image in a format that is not read, .heic (a/1.heic)"),
        ("more.zip", "1 archive not unpacked (more.zip)"),
        ("metadata.csv", "1 other file not read (metadata.csv)"),
        ("a/notes.txt", "1 other file not read (a/notes.txt)"),
    ],
)
def test_what_lies_beside_good_folders_is_left_out_by_name(path: str, said: str) -> None:
    counts, left_out, _ = read(*CLASSES, path)
    assert counts == BOTH
    assert said in left_out


@pytest.mark.parametrize("path", [".DS_Store", "a/.DS_Store", "Thumbs.db", "b/THUMBS.DB", "desktop.ini"])
def test_what_file_managers_leave_behind_is_passed_over(path: str) -> None:
    assert read(*CLASSES, path) == (BOTH, "", "")


@pytest.mark.parametrize("ending", ["PNG", "Jpg", "JPEG", "TIFF", "Bmp"])
def test_endings_are_known_in_any_case(ending: str) -> None:
    assert read("a/1." + ending, "b/1." + ending)[0] == {"train": {"a": 1, "b": 1}}


def test_empty_class_folders_are_said() -> None:
    counts, left_out, _ = read(*CLASSES, folders=("c", "test"))
    assert counts == BOTH
    assert "2 folders without images (c, test)" in left_out


def test_a_test_split_without_class_folders_is_none() -> None:
    counts, left_out, _ = read("train/a/1.png", "train/b/1.png", "test/x.png*4")
    assert counts == {"train": {"a": 1, "b": 1}}
    assert "4 images in no class folder of test/" in left_out
    counts, left_out, _ = read("train/a/1.png", "train/b/1.png", "test/unknown/x.png*4", "val/a/1.png", "val/b/2.png")
    assert counts == {"train": {"a": 1, "b": 1}, "validation": {"a": 1, "b": 1}}
    assert "4 images in test/, without labels: their one folder, unknown/, is no class of train/" in left_out


def test_folders_beside_two_splits_are_counted() -> None:
    splits = [f"{split}/{label}/1.png" for split in ("train", "test") for label in "ab"]
    counts, left_out, _ = read(*splits, "masks/1.png", "extra/c/2.png")
    assert counts == {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    assert "2 images in folders that are no split, beside the split folders" in left_out


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_a_class_is_the_same_in_either_unicode_form() -> None:
    counts, _, _ = read(f"train/{NFC}/1.png", "train/b/1.png", f"test/{NFD}/1.png", "test/b/1.png")
    assert counts == {"train": {NFC: 1, "b": 1}, "test": {NFC: 1, "b": 1}}
    for twin in (NFD, f"{NFC} "):
        with pytest.raises(LayoutError, match="differ only in Unicode normalisation or in blanks"):
            read(f"{NFC}/1.png", f"{twin}/1.png")


def test_classes_that_differ_in_case_are_two_and_that_is_said() -> None:
    counts, _, notes = read("a/1.png", "A/1.png")
    assert counts == {"train": {"A": 1, "a": 1}}
    assert "classes 'A' and 'a' differ in case only" in notes
    assert "classes 'CAT ' and 'Cat' differ in case and blanks only" in read("Cat/1.png", "CAT /1.png")[2]


def test_names_that_cannot_be_told_apart_as_they_are_shown_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"folders 'a\\udcfe' and 'a\\udcff' differ only .* bytes that are no UTF-8"):
        read("a\udcfe/1.png", "a\udcff/1.png")


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_a_folder_around_the_split_folders_is_not_the_one_to_give(splits: tuple[str, ...]) -> None:
    with pytest.raises(
        LayoutError, match=r"data/ holds the split folders .*; give the folder data/ instead of the one"
    ):
        read(*(f"data/{split}/{label}/1.png" for split in splits for label in "ab"))
    with pytest.raises(LayoutError, match="a split below a class"):
        read("data/train/1.png", "data/test/1.png")


# Parquet


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], {"train": 1, "test": 1}),
        (["data/foo-train-00000.parquet", "data/foo-test-00000.parquet"], {"train": 1, "test": 1}),
        (["TRAIN.PARQUET", "Val.parquet"], {"train": 1, "validation": 1}),
        (["default/train/0000.parquet", "default/test/0000.parquet"], {"train": 1, "test": 1}),
        (["flowers_train2.parquet", "flowers_train10.parquet"], {"train": 2}),
        (["a.parquet", "b.parquet"], {"train": 2}),
        (["latest-train.parquet", "contest_valid.parquet"], {"train": 1, "validation": 1}),
    ],
)
def test_parquet_files_name_their_split(paths: list[str], splits: dict[str, int]) -> None:
    layout = arrange(tree(*paths))
    assert (layout.kind, {split: len(files) for split, files in layout.splits.items()}) == ("parquet", splits)
    assert layout.left_out == ()


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["train_test.parquet"], "train_test.parquet names more than one split, test and train; rename it"),
        (["test/train.parquet"], "test/train.parquet names more than one split"),
        (["test.parquet"], r"no Parquet file names the train split; found the test split \(test.parquet\)"),
        (["train-00000-of-00002-0abc.parquet"], "such as train-00001-of-00002.parquet"),
        (["train_00000_of_00002.parquet"], "1 of 2 Parquet files are missing, such as train_00001_of_00002.parquet"),
        (["train-1of3.parquet"], "2 of 3 Parquet files are missing, such as train-0of3.parquet"),
        (
            ["train-00000-of-00001-abc.parquet", "train-00000-of-00001-def.parquet"],
            "train-00000-of-00001-abc.parquet and train-00000-of-00001-def.parquet are parts of two versions",
        ),
        (
            ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
            "parts of two versions of one table; keep the files of one version",
        ),
        (["train-00002-of-00002.parquet"], "files of 2 are numbered 0 to 1; rename or remove it"),
        (["train-00000-of-00002.parquet"], "1 of 2 Parquet files are missing, such as train-00001-of-00002.parquet"),
        (["256/train.parquet", "512/train.parquet"], "of the train split lie in 2 folders"),
        (["train.parquet", "val.parquet", "valid.parquet"], "name the validation split as val and as valid; keep one"),
        (["train.parquet", "a/1.png", "b/1.png"], r"1 Parquet file \(train.parquet\) and 2 images in folders"),
    ],
)
def test_parquet_files_that_may_mean_two_things_are_refused(paths: list[str], said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        arrange(tree(*paths))


def test_what_lies_beside_parquet_files_is_counted() -> None:
    layout = arrange(tree("train.parquet", "extra.parquet", "assets/logo.png", ".old.parquet", "README.md"))
    said = "; ".join(layout.left_out)
    assert "1 Parquet file whose name has no split, though other names have one (extra.parquet)" in said
    assert "1 image beside Parquet files, which are read instead (assets/logo.png)" in said
    assert "1 Parquet file hidden" in said


# Any tree


NAMES = st.sampled_from(
    ["a", "b", "c", "train", "test", "val", "Test", "x.png", "test.JPG", "y.bmp", ".z.png", "n.txt", "w.heic"]
)


@given(
    st.lists(st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: [*parts[:-1], f"{parts[-1]}.png"]), max_size=12)
)
def test_every_image_is_used_or_counted_as_left_out(paths: list[list[str]]) -> None:
    files = sorted({tuple(parts) for parts in paths})
    try:
        layout = arrange(Tree(files))
    except LayoutError:
        return
    using = sum(len(split) for split in layout.splits.values())
    counted = sum(
        int(said.split()[0].replace(",", "")) for said in layout.left_out if said.split()[1].startswith("image")
    )
    assert using + counted == len(files)
    assert len({file.parts for split in layout.splits.values() for file in split}) == using
    for split in layout.splits.values():
        assert {file.label for file in split} == {file.label for file in layout.splits["train"]}


# The walk


def make(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "store/1.png", "store/2.png", "set/b/3.png")
    (tmp_path / "set" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "set" / "b" / "4.png").symlink_to(tmp_path / "store" / "1.png")
    assert used(arrange(walk(tmp_path / "set"))) == {"train": {"a": 2, "b": 2}}


def test_links_that_lead_nowhere_or_around_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "3.png").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "b" / "4.png")
    layout = arrange(walk(tmp_path))
    assert used(layout) == {"train": {"a": 1, "b": 1}}
    said = "; ".join(layout.left_out)
    for part in ("links to a folder that they lie in (a/up)", "links that lead nowhere (b/3.png)", "pipes or devices"):
        assert part in said


@pytest.mark.parametrize("name", ["[x]", "a*b", "{1,2}", "?", "100%", "with blank", "ünï"])
def test_a_path_may_have_any_characters(name: str, tmp_path: Path) -> None:
    make(tmp_path, f"{name}/{name}/1.png", f"{name}/b/2.png")
    assert used(arrange(walk(tmp_path / name))) == {"train": {name: 1, "b": 1}}
