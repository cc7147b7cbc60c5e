"""Loading data sets: where they are found, how pixels and labels are read, and the cache."""

import base64
import gzip
import io
import math
import os
import pickle
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from huggingface_hub import constants
from PIL import EpsImagePlugin, Image
from pyarrow import parquet

from spectrum.data import kept, load
from spectrum.data.digits import read_digits
from spectrum.data.images import described
from spectrum.data.load import load_images
from spectrum.data.pixels import DataError
from spectrum.data.splits import Images, describe, make_images, record, summarise
from spectrum.design.run import RunConfig
from tests.data.stored import Pixels, as_nchw, encoded, random_pixels, write_folder, write_parquet

# The embedded data set


def test_digits_are_each_image_of_the_file_once() -> None:
    images = load_images("digits")
    assert (images.train_x.shape, images.test_x.shape) == ((1498, 1, 8, 8), (299, 1, 8, 8))
    assert (images.train_x.dtype, images.train_y.dtype, images.classes) == (torch.uint8, torch.int64, 10)
    expected = Counter(
        (np.rint(pixels * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for pixels, label in zip(*read_digits(), strict=True)
    )
    loaded = Counter(
        (pixels.numpy().tobytes(), int(label))
        for x, y in ((images.train_x, images.train_y), (images.test_x, images.test_y))
        for pixels, label in zip(x, y, strict=True)
    )
    assert loaded == expected


def test_the_fingerprint_of_digits_never_changes() -> None:
    assert load_images("digits").fingerprint == "31ab4c1d473e2109"


def test_a_fingerprint_tells_pixels_labels_and_shapes_apart() -> None:
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    one_pixel = x.clone()
    one_pixel[3, 0, 1, 1] = 1
    sets = [(x, y, x, y), (one_pixel, y, x, y), (x, y, one_pixel, y), (x, y.flip(0), x, y), (x, y, x, y.flip(0))]
    sets.append((x.view(4, 1, 4, 1), y, x, y))
    assert len({make_images(*tensors).fingerprint for tensors in sets}) == len(sets)


def test_digits_are_resized_as_pillow_does_it() -> None:
    small, large = load_images("digits"), load_images("digits", 16)
    assert large.train_x.shape == (1498, 1, 16, 16)
    assert torch.equal(large.train_y, small.train_y)
    expected = [Image.fromarray(x[0].numpy()).resize((16, 16), Image.Resampling.BILINEAR) for x in small.train_x]
    error = large.train_x[:, 0].double() - torch.from_numpy(np.stack([np.asarray(image) for image in expected]))
    assert error.abs().max() <= 1
    assert error.mean().abs() < 0.05


# Parquet


@pytest.mark.parametrize(
    ("channels", "image", "label"),
    [(1, "image", "label"), (3, "img", "label"), (3, "img", "fine_label")],
    ids=["grey, as fashion_mnist", "RGB, as cifar10", "RGB, as cifar100"],
)
@pytest.mark.parametrize(
    ("named", "below"),
    [("flowers", ""), ("owner/flowers", "data/"), ("./flowers", "plain_text/")],
)
def test_parquet_in_the_hubs_layout_loads(
    data_root: Path, channels: int, image: str, label: str, below: str, named: str
) -> None:
    root = Path() if named.startswith(".") else data_root
    train, test = random_pixels(9, channels=channels), random_pixels(4, channels=channels, seed=1)
    for part in range(2):  # two files of one split
        path = root / named / f"{below}train-0000{part}-of-00002.parquet"
        write_parquet(path, train[part::2], [n % 3 for n in range(9)][part::2], image=image, label=label)
    write_parquet(root / named / f"{below}test-00000-of-00001.parquet", test, [2, 2, 1, 0], image=image, label=label)
    images = load_images(named)
    order = [*range(0, 9, 2), *range(1, 9, 2)]
    assert torch.equal(images.train_x, as_nchw([train[n] for n in order]))
    assert images.train_y.tolist() == [n % 3 for n in order]
    assert torch.equal(images.test_x, as_nchw(test))
    assert images.test_y.tolist() == [2, 2, 1, 0]
    assert (images.shape, images.classes) == ((channels, 6, 6), 3)


def test_of_two_label_columns_the_fine_one_is_taken(data_root: Path) -> None:
    features = datasets.Features(
        {"img": datasets.Image(), "coarse_label": datasets.ClassLabel(2), "fine_label": datasets.ClassLabel(4)}
    )
    files = [{"bytes": encoded(pixels), "path": None} for pixels in random_pixels(8)]
    columns = {"img": files, "coarse_label": [0, 0, 1, 1] * 2, "fine_label": [0, 1, 2, 3] * 2}
    (data_root / "cifar100").mkdir()
    for part in ("train", "test"):
        path = data_root / "cifar100" / f"{part}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    assert load_images("cifar100").train_y.tolist() == [0, 1, 2, 3] * 2


def test_parquet_as_the_hub_converts_it_keeps_its_splits_apart(data_root: Path) -> None:
    train, test = random_pixels(9), random_pixels(3, seed=1)
    write_parquet(data_root / "flowers/default/train/0000.parquet", train, [0, 1, 2] * 3)
    write_parquet(data_root / "flowers/default/test/0000.parquet", test, [0, 1, 2])
    images = load_images("flowers")
    assert torch.equal(images.train_x, as_nchw(train))
    assert torch.equal(images.test_x, as_nchw(test))


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_where_there_is_no_test_split_the_validation_split_is_the_test_set(data_root: Path, name: str) -> None:
    test = random_pixels(3, seed=1)
    write_parquet(data_root / "flowers/train.parquet", random_pixels(6), [0, 1, 2] * 2)
    write_parquet(data_root / f"flowers/{name}.parquet", test, [0, 1, 2])
    assert torch.equal(load_images("flowers").test_x, as_nchw(test))


def test_the_test_split_goes_before_the_validation_split(data_root: Path) -> None:
    test = random_pixels(3, seed=1)
    write_parquet(data_root / "flowers/train.parquet", random_pixels(6), [0, 1, 2] * 2)
    write_parquet(data_root / "flowers/validation.parquet", random_pixels(3, seed=2), [0, 1, 2])
    write_parquet(data_root / "flowers/test.parquet", test, [0, 1, 2])
    assert torch.equal(load_images("flowers").test_x, as_nchw(test))


def test_a_test_split_whose_labels_are_withheld_is_none(data_root: Path) -> None:
    """As the hub has ImageNet: the labels of its test split are all −1."""
    validation = random_pixels(3, seed=2)
    write_parquet(data_root / "flowers/train.parquet", random_pixels(6), [0, 1, 2] * 2)
    write_parquet(data_root / "flowers/test.parquet", random_pixels(3, seed=1), [-1, -1, -1])
    write_parquet(data_root / "flowers/validation.parquet", validation, [0, 1, 2])
    images = load_images("flowers")
    assert torch.equal(images.test_x, as_nchw(validation))
    assert images.test_y.tolist() == [0, 1, 2]


def test_without_a_test_split_a_fixed_sixth_is_the_test_set(data_root: Path) -> None:
    train = random_pixels(90)
    write_parquet(data_root / "flowers/train.parquet", train, [0, 1, 2] * 30)
    images = load_images("flowers")
    assert images.test_y.bincount().tolist() == [5, 5, 5]
    assert images.train_y.bincount().tolist() == [25, 25, 25]
    both = torch.cat([images.train_x, images.test_x])
    assert sorted(x.numpy().tobytes() for x in both) == sorted(pixels.tobytes() for pixels in train)

    (data_root / "flowers/train.parquet").rename(data_root / "flowers/train-00000-of-00001.parquet")
    load_images.cache_clear()
    assert load_images("flowers").fingerprint == images.fingerprint, "the same sixth every time"


def test_without_a_test_split_all_classes_are_counted(data_root: Path) -> None:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(13), [0, 1] * 6 + [2])
    try:
        images = load_images("flowers")
    except DataError:
        return  # too few images to split is a fair answer too
    assert images.classes == 3
    assert int(images.test_y.max()) < images.classes


# Folders of images


def test_a_folder_of_png_files_loads_with_classes_in_alphabetical_order(data_root: Path) -> None:
    train, test = random_pixels(9), random_pixels(6, seed=1)
    write_folder(data_root / "flowers/train", train, ["rose", "aster", "lily"])
    write_folder(data_root / "flowers/test", test, ["rose", "aster", "lily"])
    images = load_images("flowers")
    number = {"aster": 0, "lily": 1, "rose": 2}
    dealt = ["rose", "aster", "lily"]
    for x, y, source in ((images.train_x, images.train_y, train), (images.test_x, images.test_y, test)):
        loaded = Counter((one.numpy().tobytes(), int(label)) for one, label in zip(x, y, strict=True))
        assert loaded == Counter((p.tobytes(), number[dealt[n % 3]]) for n, p in enumerate(source))


@pytest.mark.parametrize("name", ["flowers", "./flowers"])
def test_a_folder_of_jpeg_files_loads_as_pillow_decodes_them(data_root: Path, name: str) -> None:
    folder = Path("flowers") if name.startswith(".") else data_root / name
    write_folder(folder, random_pixels(12, side=16, channels=3), ["a", "b"], "jpg")
    images = load_images(name)
    assert (images.shape, images.classes, len(images.train_y), len(images.test_y)) == ((3, 16, 16), 2, 10, 2)
    files = sorted(folder.rglob("*.jpg"))
    decoded = {
        np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes(): "ab".index(file.parent.name) for file in files
    }
    both = zip(torch.cat([images.train_x, images.test_x]), torch.cat([images.train_y, images.test_y]), strict=True)
    assert {one.numpy().tobytes(): int(label) for one, label in both} == decoded


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_images_that_are_not_grey_become_rgb(data_root: Path, mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    sources = [Image.fromarray(pixels).convert(mode) for pixels in random_pixels(6, channels=3)]
    files = []
    for source in sources:
        source.save(file := io.BytesIO(), kind)
        files.append(file.getvalue())
    write_parquet(data_root / "flowers/train.parquet", files, [0, 1, 2] * 2)
    write_parquet(data_root / "flowers/test.parquet", files[:3], [0, 1, 2])
    expected = [np.asarray(source.convert("RGB")) for source in sources]
    assert torch.equal(load_images("flowers").train_x, as_nchw(expected))


def test_the_test_split_has_as_many_channels_as_the_training_split(data_root: Path) -> None:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(6), [0, 1, 2] * 2)
    write_parquet(data_root / "flowers/test.parquet", random_pixels(3, channels=3), [0, 1, 2])
    images = load_images("flowers")
    assert images.test_x.shape == (3, 1, 6, 6)
    assert images.about.notes == ("training images are grey, so coloured test images are read as grey",)


# Sizes


def test_image_size_resizes_and_smooths(data_root: Path) -> None:
    train = random_pixels(6, side=16, channels=3)
    write_parquet(data_root / "flowers/train.parquet", train, [0, 1, 2] * 2)
    write_parquet(data_root / "flowers/test.parquet", train[:3], [0, 1, 2])
    images = load_images("flowers", 8)
    expected = torch.nn.functional.interpolate(as_nchw(train).double(), (8, 8), mode="bilinear", antialias=True)
    assert (images.train_x - expected).abs().max() < 1.5
    assert load_images("flowers").shape == (3, 16, 16), "each size has a cache of its own"


def test_images_of_mixed_sizes_ask_for_image_size(data_root: Path) -> None:
    mixed = [*random_pixels(3, side=6), *random_pixels(3, side=9)]
    write_parquet(data_root / "flowers/train.parquet", mixed, [0, 1, 2] * 2)
    with pytest.raises(DataError, match="image 3 of the train split has 9×9 pixels, earlier ones 6×6; set image_size"):
        load_images("flowers")
    assert load_images("flowers", 5).shape == (1, 5, 5)


def test_a_test_split_of_another_size_asks_for_image_size(data_root: Path) -> None:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(3, side=6), [0, 1, 2])
    write_parquet(data_root / "flowers/test.parquet", random_pixels(3, side=9), [0, 1, 2])
    with pytest.raises(DataError, match="another size; set image_size"):
        load_images("flowers")


def test_images_that_are_not_square_ask_for_image_size(data_root: Path) -> None:
    oblong = [pixels[:4] for pixels in random_pixels(6)]
    write_parquet(data_root / "flowers/train.parquet", oblong, [0, 1, 2] * 2)
    with pytest.raises(DataError, match="images are 4×6; set image_size"):
        load_images("flowers")
    assert load_images("flowers", 6).shape == (1, 6, 6)


# Broken and missing


def broken(how: str) -> bytes:
    whole = encoded(random_pixels(1, side=16)[0], how.split()[0])
    if "cut" in how:
        return whole[: len(whole) // 2]
    if "huge" in how:
        return whole[:18] + (100_000).to_bytes(4, "little") * 2 + whole[26:]  # width and height
    return {"PNG text": b"not an image", "PNG empty": b"", "PPM header": b"P6 16 sixteen 255 " + bytes(768)}[how]


@pytest.mark.parametrize("how", ["PNG cut", "JPEG cut", "PNG text", "PNG empty", "BMP huge", "PPM header"])
def test_a_corrupt_image_is_named_by_its_number_and_split(data_root: Path, how: str) -> None:
    files: list[Pixels | bytes] = [*random_pixels(6, side=16)]
    write_parquet(data_root / "flowers/train.parquet", files, [0, 1, 2] * 2)
    files[4] = broken(how)
    write_parquet(data_root / "flowers/test.parquet", files, [0, 1, 2] * 2)
    with pytest.raises(DataError, match=r"dataset='flowers': image 4 of the test split cannot be decoded"):
        load_images("flowers")


def test_a_corrupt_file_is_named_by_its_path(data_root: Path) -> None:
    write_folder(data_root / "flowers", random_pixels(6), ["a", "b"])
    victim = data_root / "flowers" / "b" / "003.png"
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.raises(DataError, match=f"{victim}.* cannot be decoded"):
        load_images("flowers")


@pytest.mark.parametrize(("name", "hub_id"), [("cifar100", "uoft-cs/cifar100"), ("owner/none", "owner/none")])
@pytest.mark.usefixtures("data_root")
def test_a_missing_data_set_says_both_ways_to_get_it(name: str, hub_id: str) -> None:
    with pytest.raises(DataError) as missing:
        load_images(name)
    said = str(missing.value)
    assert f"dataset='{name}'" in said
    assert f"at $SPECTRUM_DATA/{name}/" in said
    assert f"connect to the network once, and {hub_id} is downloaded" in said


@pytest.mark.usefixtures("data_root")
def test_a_hub_that_cannot_be_reached_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a port at which nothing listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match="connect to the network once"):
        load_images("cifar10")
    assert constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.usefixtures("data_root")
def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        DataError,
        match=r"'cifra10': unknown; did you mean 'cifar10'\? Else try 'digits'",
    ):
        load_images("cifra10")


@pytest.mark.usefixtures("data_root")
def test_a_folder_that_is_not_there_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"dataset='\./none': no such folder /.*none; it is looked up in the current folder$"
    ):
        load_images("./none")


def test_a_folder_without_images_is_an_error(data_root: Path) -> None:
    (data_root / "flowers").mkdir()
    with pytest.raises(DataError, match="dataset='flowers': holds no folder with images"):
        load_images("flowers")


def test_columns_that_are_no_image_or_label_are_listed(data_root: Path) -> None:
    (data_root / "prose").mkdir()
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).to_parquet(data_root / "prose/train.parquet")
    with pytest.raises(DataError, match="found the columns text, label; expected an image"):
        load_images("prose")


def test_a_label_that_training_never_shows_is_an_error(data_root: Path) -> None:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(4), [0, 1] * 2)
    write_parquet(data_root / "flowers/test.parquet", random_pixels(2), [0, 2])
    with pytest.raises(
        DataError, match=r"column 'label' of the test split holds 2 \('2'\), which no training image has"
    ):
        load_images("flowers")


# Description of a data set


def said_of(name: str, *how: Any) -> str:
    return describe(name, record(load_images(name, *how)))


def test_a_data_set_is_said_in_a_line(data_root: Path) -> None:
    write_folder(data_root / "flowers", random_pixels(13), ["a", "b"])
    Image.fromarray(random_pixels(1)[0]).save(data_root / "flowers" / "loose test.png")
    line = said_of("flowers")
    assert (
        "flowers: 11 training and 2 test images · 2 classes, training/test: a 6/1, b 5/1 · 6×6 pixels, 1 channel"
        in line
    )
    assert "test images: a fixed sixth of the training files, carved off, since there is no test split" in line
    assert "left out: 1 image in no class folder (loose test.png)" in line


def test_where_test_images_come_from_and_what_is_left_out_is_said_of_tables(data_root: Path) -> None:
    for split, labels in (("train", [0, 1, 2] * 4), ("test", [-1] * 5), ("validation", [2, 1, 0])):
        write_parquet(data_root / f"flowers/{split}.parquet", random_pixels(len(labels)), labels)
    for line in (said_of("flowers"), said_of("flowers")):  # decoded, and from the cache
        assert "12 training and 3 test images · 3 classes of 4 training and 1 test images: 0, 1, 2" in line
        assert "test images: the validation split" in line
        assert "image column 'image', label column 'label'" in line
        assert "left out: 5 images of the test split, without labels: all its labels are -1" in line
    write_parquet(data_root / "flowers/test.parquet", random_pixels(3), [0, 1, 2])
    assert "left out: 3 images of the validation split: validation images are carved off" in said_of("flowers")


def test_of_many_classes_there_is_a_summary(data_root: Path) -> None:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(122), [*range(40)] * 3 + [0, 1], classes=41)
    line = said_of("flowers")
    assert "40 classes of 2 to 3 training and 1 test images · " in line
    assert "1 of 41 named classes without images" in line


def test_of_several_label_columns_the_one_that_is_read_is_said(data_root: Path) -> None:
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "mask": datasets.Image(),
            "coarse_label": datasets.ClassLabel(2),
            "fine_label": datasets.ClassLabel(4),
        }
    )
    files = [{"bytes": encoded(pixels), "path": None} for pixels in random_pixels(16)]
    columns = {"img": files, "mask": files, "coarse_label": [0, 0, 1, 1] * 4, "fine_label": [0, 1, 2, 3] * 4}
    (data_root / "flowers").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(data_root / "flowers/train.parquet")
    said = "image column 'img', label column 'fine_label'; not read: 'mask', 'coarse_label'"
    assert said in said_of("flowers")


@pytest.mark.parametrize("test_labels", [None, [None] * 3, [-1] * 3, [math.nan] * 3, ["?"] * 3, [0] * 3])
def test_withheld_test_labels_leave_a_sixth_as_the_test_set(data_root: Path, test_labels: list[Any] | None) -> None:
    def write(split: str, labels: list[Any] | None, count: int) -> None:
        columns = {"image": [encoded(pixels) for pixels in random_pixels(count)]}
        table = pyarrow.table(columns | ({} if labels is None else {"label": labels}))
        parquet.write_table(table, data_root / "flowers" / f"{split}.parquet")

    (data_root / "flowers").mkdir()
    write("train", [0, 1] * 6, 12)
    write("test", test_labels, 3)
    images = load_images("flowers")
    assert len(images.test_y) == 2
    assert images.about.test.startswith("a fixed sixth of the training files")
    assert images.about.left_out[0].startswith("3 images of the test split, without labels: ")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pyarrow.array([[0, 1], [2, 3]] * 6), r"column 'image' holds list<.*> values, not encoded images"),
        (pyarrow.array([1.0] * 12), "column 'image' holds double values, not encoded images"),
        (pyarrow.array([{"bytes": None, "path": "x.png"}] * 12), "image 0 .* has its path only, not its bytes"),
        (pyarrow.array([None] * 12, pyarrow.binary()), "image 0 of the train split cannot be decoded .there is none."),
    ],
)
def test_an_image_column_without_encoded_images_is_refused(data_root: Path, column: Any, said: str) -> None:
    (data_root / "flowers").mkdir()
    parquet.write_table(pyarrow.table({"image": column, "label": [0, 1] * 6}), data_root / "flowers/train.parquet")
    with pytest.raises(DataError, match=said):
        load_images("flowers")


def test_a_test_split_that_lacks_a_class_is_refused_by_name(data_root: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["iris", "lily", "rose"])}
    )
    for split, labels in (("train", [0, 1, 2] * 4), ("test", [0, 2])):
        files = [{"bytes": encoded(pixels), "path": None} for pixels in random_pixels(len(labels))]
        (data_root / "flowers").mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)
        table.to_parquet(data_root / "flowers" / f"{split}.parquet")
    with pytest.raises(
        DataError, match="dataset='flowers': class 'lily' of the train split has no images in the test split"
    ):
        load_images("flowers")


# Files that would run a program if allowed


class Canary:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


PICKLES: dict[str, Callable[[Canary], bytes]] = {
    **{f"protocol {number}": partial(pickle.dumps, protocol=number) for number in (0, 1, 2, 4, 5)},
    "gzip": lambda canary: gzip.compress(pickle.dumps(canary)),
    "torch": lambda canary: saved(lambda file: torch.save(canary, file)),
    "torch, older": lambda canary: saved(lambda file: torch.save(canary, file, _use_new_zipfile_serialization=False)),
    "numpy": lambda canary: saved(lambda file: np.save(file, np.array([canary], dtype=object), allow_pickle=True)),
}


def saved(save: Callable[[io.BytesIO], None]) -> bytes:
    save(file := io.BytesIO())
    return file.getvalue()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """One that lives, and has not sung when the test ends."""
    one = Canary(tmp_path / "sung")
    pickle.loads(pickle.dumps(one))
    one.folder.rmdir()
    yield one
    assert not one.folder.exists()


@pytest.mark.parametrize("how", PICKLES)
@pytest.mark.parametrize("file", ["train.parquet", "a/0.png"])
def test_a_pickle_in_place_of_a_file_is_not_loaded(data_root: Path, canary: Canary, how: str, file: str) -> None:
    if not file.endswith("parquet"):
        write_folder(data_root / "flowers", random_pixels(6), ["a", "b"])
    path = data_root / "flowers" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PICKLES[how](canary))
    with pytest.raises(DataError, match=r"cannot be (read|decoded)"):
        load_images("flowers")


@pytest.mark.parametrize("how", PICKLES)
def test_a_pickle_in_place_of_an_image_is_not_loaded(data_root: Path, canary: Canary, how: str) -> None:
    files = [*random_pixels(5), PICKLES[how](canary)]
    write_parquet(data_root / "flowers/train.parquet", files, [0, 1, 2] * 2)
    with pytest.raises(DataError, match=r"image 5 of the train split cannot be decoded"):
        load_images("flowers")


def test_a_pickle_in_the_type_of_a_column_is_not_loaded(data_root: Path, canary: Canary) -> None:
    """As pyarrow did until 14.0.1 (CVE-2023-47248)."""
    path = data_root / "flowers/train.parquet"
    write_parquet(path, random_pixels(12), [0, 1, 2] * 4)
    table = parquet.read_table(path)
    kind = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(canary)}
    fields = [field.with_metadata(kind) for field in table.schema]
    parquet.write_table(table.cast(pyarrow.schema(fields, table.schema.metadata)), path)
    assert b"py_extension_type" in base64.b64decode(parquet.read_metadata(path).metadata[b"ARROW:schema"])
    with suppress(DataError):
        load_images("flowers")


@pytest.mark.parametrize("kind", ["parquet", "png"])
@pytest.mark.parametrize("name", ["flowers", "./flowers", "owner/flowers"])
def test_a_program_beside_the_images_is_not_run(data_root: Path, canary: Canary, kind: str, name: str) -> None:
    folder = data_root / name if name == "flowers" else Path(name)  # the hub's library looks here for its ids too
    if kind == "parquet":
        write_parquet(folder / "train.parquet", random_pixels(12), [0, 1] * 6)
    else:
        write_folder(folder, random_pixels(12), ["a", "b"])
    for program in ("flowers.py", "__init__.py", "datasets.py", "a/a.py"):
        (folder / program).parent.mkdir(exist_ok=True)
        (folder / program).write_text(f"import os; os.mkdir({str(canary.folder)!r})")
    (folder / "README.md").write_text(f"---\nx: !!python/object/apply:os.mkdir [{canary.folder}]\n---\n")
    with nullcontext() if "owner" not in name else pytest.raises(DataError):
        assert len(load_images(name).train_y) == 10


def test_no_program_draws_an_image(data_root: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives PostScript to Ghostscript, if there is one: a program of its own, run by what is in the file."""
    ghostscript = data_root / "gs"
    ghostscript.write_text(f"#!/bin/sh\nmkdir {canary.folder}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(data_root), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # which Pillow looks for once
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\nshowpage\n%%EOF\n"
    write_parquet(data_root / "flowers/train.parquet", [*random_pixels(5), script], [0, 1, 2] * 2)
    with pytest.raises(DataError, match=r"image 5 of the train split cannot be decoded"):
        load_images("flowers")


# The cache


@pytest.fixture
def flowers(data_root: Path) -> Path:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(6, side=3), [0, 1, 2] * 2)
    write_parquet(data_root / "flowers/test.parquet", random_pixels(3, side=3, seed=1), [0, 1, 2])
    return data_root / "flowers"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the data sets that are decoded from their source from now on."""
    names: list[str] = []
    real = load._read

    def counted(source: Any, *how: Any) -> Images:
        names.append(source.name)
        return real(source, *how)

    monkeypatch.setattr(load, "_read", counted)
    return names


@pytest.mark.parametrize("limit", ["4", "0"], ids=["in memory", "encoded"])
def test_arrow_and_parquet_of_one_table_are_the_same_images(
    data_root: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of bytes, a struct without a note of its type, several row groups, a path that looks like a pattern."""
    monkeypatch.setenv("SPECTRUM_IMAGES_GB", limit)
    files, labels = [encoded(pixels) for pixels in random_pixels(30)], ["iris", "rose", "lily"] * 10
    rows = {"bytes": pyarrow.array(files), "struct": pyarrow.array([{"bytes": file, "path": None} for file in files])}
    for name, column in rows.items():
        table = pyarrow.table({"image": column, "label": labels})
        (data_root / f"{name}[0-9]*").mkdir()
        parquet.write_table(table, data_root / f"{name}[0-9]*" / "train.parquet", row_group_size=7)
    found = [load_images(f"{name}[0-9]*", 6) for name in rows]
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].about.classes == ("iris", "lily", "rose")


def load_anew() -> Images:
    load_images.cache_clear()
    return load_images("flowers")


def same(one: Images, other: Images) -> bool:
    names = ("train_x", "train_y", "test_x", "test_y")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    equal = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    same_words = (one.classes, one.fingerprint, one.about) == (other.classes, other.fingerprint, other.about)
    return equal and same_words


def cached_file() -> Path:
    (path,) = Path(os.environ["SPECTRUM_CACHE"]).glob("*.safetensors")
    return path


@pytest.mark.usefixtures("flowers")
def test_images_are_decoded_once(decoded: list[str]) -> None:
    first = load_anew()
    assert same(load_anew(), first)
    assert decoded == ["flowers"]


def test_a_changed_source_is_decoded_again(flowers: Path, decoded: list[str]) -> None:
    first = load_anew()
    write_parquet(flowers / "test.parquet", random_pixels(3, side=3, seed=2), [0, 1, 2])
    second = load_anew()
    assert decoded == ["flowers"] * 2
    assert torch.equal(second.test_x, as_nchw(random_pixels(3, side=3, seed=2)))
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("limit", ["4", "0"], ids=["in memory", "encoded"])
def test_files_of_the_same_name_size_and_time_are_told_apart(
    data_root: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRUM_IMAGES_GB", limit)
    write_folder(data_root / "flowers", random_pixels(6), ["a", "b"], "bmp")
    first = load_images("flowers", 6)
    victim = data_root / "flowers" / "a" / "000.bmp"
    before = victim.stat()
    Image.fromarray(random_pixels(1, seed=1)[0]).save(victim)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (victim.stat().st_size, victim.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = load_images("flowers", 6)
    assert first.fingerprint != second.fingerprint
    shutil.copytree(data_root / "flowers", data_root / "roses")
    assert load_images("roses", 6).fingerprint == second.fingerprint


@pytest.mark.parametrize("limit", ["4", "0"], ids=["in memory", "encoded"])
def test_parquet_files_of_the_same_name_size_and_time_are_told_apart(
    data_root: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRUM_IMAGES_GB", limit)
    path = data_root / "flowers" / "train.parquet"
    found = []
    for labels in ([0, 1, 2] * 4, [2, 1, 0] * 4):
        path.parent.mkdir(exist_ok=True)
        table = pyarrow.table({"image": [encoded(pixels) for pixels in random_pixels(12)], "label": labels})
        parquet.write_table(table, path, compression="none", use_dictionary=False)
        os.utime(path, ns=(1_600_000_000_000_000_000,) * 2)
        found.append((path.stat().st_size, load_images("flowers", 6)))
    assert found[0][0] == found[1][0]
    assert not torch.equal(found[0][1].train_y, found[1][1].train_y)
    assert found[0][1].fingerprint != found[1][1].fingerprint


def test_a_folder_that_grows_is_read_again_by_the_same_process(data_root: Path) -> None:
    write_folder(data_root / "flowers", random_pixels(6), ["a", "b"])
    assert (load_images("flowers").classes, len(load_images("flowers").train_y)) == (2, 4)
    write_folder(data_root / "flowers", random_pixels(9, seed=1), ["a", "b", "c"])
    assert (load_images("flowers").classes, len(load_images("flowers").train_y)) == (3, 10)


def test_files_that_change_while_they_are_read_are_not_kept(flowers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load.decode_all

    def decode(*how: Any) -> torch.Tensor:
        write_parquet(flowers / "test.parquet", random_pixels(3, side=3, seed=len(changes) + 5), [0, 1, 2])
        changes.append(how)
        return real(*how)

    changes: list[Any] = []
    monkeypatch.setattr(load, "decode_all", decode)
    with pytest.raises(DataError, match="its files changed while they were read; try again"):
        load_images("flowers")
    assert not list(Path(os.environ["SPECTRUM_CACHE"]).glob("*.safetensors"))


def test_a_data_set_of_the_hub_that_changes_is_decoded_again(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    """Without a network: what `datasets` would fetch is made here."""

    def fetched(seed: int) -> Any:
        path = data_root / f"hub{seed}.parquet"
        write_parquet(path, random_pixels(12, seed=seed), [0, 1, 2] * 4)
        return datasets.DatasetDict(full=datasets.Dataset.from_parquet(str(path), cache_dir=str(data_root / "arrow")))

    uploads = [fetched(0), fetched(1)]
    found = []
    for upload in (uploads[0], uploads[0], uploads[1]):
        monkeypatch.setattr(datasets, "load_dataset", lambda name, upload=upload: upload)
        found.append(load_images("owner/flowers").fingerprint)
    assert found[0] == found[1] != found[2]
    assert decoded == ["owner/flowers"] * 2


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_cache_folder_that_others_may_write_to_is_not_used(
    data_root: Path, mode: int, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    write_folder(data_root / "flowers", random_pixels(6), ["a", "b"])
    shared = data_root.parent / f"shared{mode}"
    shared.mkdir()
    shared.chmod(mode)
    monkeypatch.setenv("SPECTRUM_CACHE", str(shared))
    with pytest.warns(UserWarning, match="is not used: it belongs to another user, or other users may write to it"):
        first = load_anew()
    assert same(load_anew(), first)
    assert decoded == ["flowers"] * 2
    assert list(shared.iterdir()) == []
    shared.chmod(0o755)
    assert same(load_anew(), first)
    assert same(load_anew(), first)
    assert decoded == ["flowers"] * 3


@pytest.mark.usefixtures("flowers")
@pytest.mark.parametrize("where", [-1, -30, 200, 0])
def test_a_flipped_byte_in_the_cache_is_noticed_and_mended(where: int, decoded: list[str]) -> None:
    first = load_anew()
    content = bytearray(cached_file().read_bytes())
    content[where] ^= 0x10
    cached_file().write_bytes(content)
    assert same(load_anew(), first)
    assert decoded == ["flowers"] * 2
    assert same(load_anew(), first)
    assert decoded == ["flowers"] * 2, "the cache is whole again"


@pytest.mark.usefixtures("flowers")
@pytest.mark.parametrize("how", PICKLES)
def test_a_pickle_in_place_of_the_cache_is_not_loaded(canary: Canary, how: str, decoded: list[str]) -> None:
    first = load_anew()
    whole = cached_file().read_bytes()
    cached_file().write_bytes(PICKLES[how](canary))
    assert same(load_anew(), first)
    assert decoded == ["flowers"] * 2
    assert cached_file().read_bytes() == whole


@pytest.mark.usefixtures("flowers")
def test_no_single_flip_or_cut_makes_the_cache_give_other_images() -> None:
    first = load_anew()
    content = cached_file().read_bytes()
    path = cached_file().with_name("damaged")
    damaged = [content[:n] + bytes([content[n] ^ (1 << n % 8)]) + content[n + 1 :] for n in range(len(content))]
    damaged += [content[:n] for n in range(0, len(content), 7)]
    for one in damaged:
        path.write_bytes(one)
        images = kept.read_cache(path)
        assert images is None or same(images, first)


@pytest.mark.usefixtures("flowers")
def test_images_load_where_no_cache_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPECTRUM_CACHE", str(tmp_path / "file" / "below"))
    assert same(load_anew(), load_anew())
    assert decoded == ["flowers"] * 2


def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    images = load_images("digits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # Python ignores SIGXFSZ
    try:
        kept.write_cache(tmp_path / "cache" / "digits.safetensors", images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []
    kept.write_cache(tmp_path / "cache" / "digits.safetensors", images)
    restored = kept.read_cache(tmp_path / "cache" / "digits.safetensors")
    assert restored is not None
    assert same(restored, images)


def test_a_folder_here_is_not_taken_for_a_data_set_of_the_hub(data_root):
    Path("pictures/flowers").mkdir(parents=True)
    with pytest.raises(DataError, match=r"is a folder here, and reads as a hub id; did you mean './pictures/flowers'"):
        load_images("pictures/flowers")


def test_where_data_is_looked_for_is_said(data_root, monkeypatch):
    for root, said in ((None, "which is not set"), ("/nowhere", "/nowhere, which is no folder")):
        monkeypatch.setenv("SPECTRUM_DATA", root) if root else monkeypatch.delenv("SPECTRUM_DATA")
        with pytest.raises(DataError, match=f"not found below .SPECTRUM_DATA .{said}"):
            load_images("fashion_mnist")


@pytest.mark.parametrize(("train_images", "used"), [(None, [1349, 149]), (200, [200, 149])])
def test_how_many_images_a_run_trains_and_validates_on_is_said(train_images, used):
    (known,) = described([RunConfig(train_images=train_images, seed=seed) for seed in (0, 1)])
    assert known["used"] == [used]
    assert f"a run trains on {used[0]:,} and validates on {used[1]} of them" in describe("digits", known)
    images = f"{used[0]:,} training, 149 validation and 299 test images"
    assert summarise("digits", known)[0] == f"digits: 10 classes · 8×8 pixels, 1 channel · {images}"


def test_a_summary_has_the_span_of_several_subsets():
    (known,) = described([RunConfig(train_images=train_images) for train_images in (200, 500)])
    assert "· 200 to 500 training, 149 validation and" in summarise("digits", known)[0]


def test_a_summary_is_short_and_omits_no_note_and_no_file_left_out(data_root: Path) -> None:
    write_folder(data_root / "flowers", random_pixels(13), ["a", "b"])
    Image.fromarray(random_pixels(1)[0]).save(data_root / "flowers" / "loose.png")
    known = record(load_images("flowers"))
    known["notes"] = ["1 of 2 test images is a training image too"]
    first, *others = summarise("flowers", known)
    assert len(first) <= 100
    assert "training and " in first, "without `used` there is no validation split to name"
    assert others == [
        f"test images: {known['test']}",
        "1 of 2 test images is a training image too",
        "left out: 1 image in no class folder (loose.png)",
    ]


# Nothing twice, and nothing that has changed


def test_a_copy_of_a_parquet_file_is_refused(data_root: Path) -> None:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(6), [0, 1, 2] * 2)
    shutil.copy(data_root / "flowers/train.parquet", data_root / "flowers/train (1).parquet")
    with pytest.raises(DataError, match=r"train \(1\).parquet and train.parquet of the train split are copies; remove"):
        load_images("flowers")


@pytest.mark.parametrize("column", ["label", "image", "other"])
def test_two_columns_of_one_name_are_refused(data_root: Path, column: str) -> None:
    image = [encoded(pixels) for pixels in random_pixels(4)]
    values = {"image": pyarrow.array(image), "label": pyarrow.array([0, 1] * 2), "other": pyarrow.array([0] * 4)}
    table = pyarrow.table([*values.values(), values[column]], [*values, column])
    (data_root / "flowers").mkdir()
    parquet.write_table(table, data_root / "flowers/train.parquet")
    with pytest.raises(DataError, match=rf"train.parquet has two columns named '{column}'; rename or remove one"):
        load_images("flowers")


def test_the_place_of_test_images_is_told_by_its_name_of_today(data_root: Path) -> None:
    for seed, part in enumerate(("train", "test")):
        write_folder(data_root / "flowers" / part, random_pixels(4, seed=seed), ["a", "b"])
    assert load_images("flowers").about.test == "those in test/"
    (data_root / "flowers/test").rename(data_root / "flowers/testing")
    assert load_images("flowers").about.test == "those in testing/"
    load_images.cache_clear()
    assert load_images("flowers").about.test == "those in testing/"


def test_a_folder_called_digits_comes_before_those_of_the_package(data_root: Path) -> None:
    assert load_images("digits").classes == 10
    write_folder(data_root / "digits", random_pixels(6), ["a", "b"])
    assert load_images("digits").about.classes == ("a", "b")


@pytest.mark.parametrize("gigabytes", ["4", "0"])
@pytest.mark.parametrize("kind", ["folder", "Parquet"])
def test_test_images_that_are_training_images_are_counted(
    data_root: Path, kind: str, gigabytes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECTRUM_IMAGES_GB", gigabytes)
    train, test = random_pixels(6), random_pixels(4, seed=1)
    for part, pixels in {"train": train, "test": [*test, *train[4:]]}.items():
        if kind == "folder":
            write_folder(data_root / "flowers" / part, pixels, ["a", "b"])
        else:
            labels = [n % 2 for n in range(len(pixels))]
            write_parquet(data_root / "flowers" / f"{part}.parquet", pixels, labels, classes=2)
    for _ in range(2):
        assert "2 of 6 test images are training images too" in load_images("flowers", 6).about.notes
        load_images.cache_clear()
