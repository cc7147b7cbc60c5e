"""Data sets as they come, splits that are fixed, and augmentation that depends on the image and nothing else."""

import io
import os
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from spectrum.study import data
from spectrum.study.data import DataError, Images, Split, balanced, batches, carve, load_images, split

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def random_pixels(count: int, side: int = 6, channels: int = 1, seed: int = 0) -> list[Pixels]:
    shape = (side, side) if channels == 1 else (side, side, channels)
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def encoded(pixels: Pixels, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def as_nchw(pixels: Sequence[Pixels]) -> torch.Tensor:
    stacked = np.stack(pixels)
    return torch.from_numpy(stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2).copy())


def write_parquet(
    path: Path,
    images: Sequence[Pixels | bytes],
    labels: Sequence[int],
    *,
    image: str = "image",
    label: str = "label",
    classes: int = 3,
) -> None:
    """One split as the hub stores it: encoded images in a column of their own type, and named classes."""
    files = [{"bytes": one if isinstance(one, bytes) else encoded(one), "path": None} for one in images]
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(num_classes=classes)})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({image: files, label: list(labels)}, features=features).to_parquet(path)


def write_folder(folder: Path, images: Sequence[Pixels], classes: Sequence[str], kind: str = "png") -> None:
    """One folder a class, images numbered in order and dealt to the classes in turn."""
    for number, pixels in enumerate(images):
        target = folder / classes[number % len(classes)]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target / f"{number:03}.{kind}")


def in_class_order(images: Sequence[Pixels], classes: int) -> list[Pixels]:
    """Images that were dealt to the classes in turn, in the order of the classes."""
    return [pixels for first in range(classes) for pixels in images[first::classes]]


def toy(count: int = 40, side: int = 7, channels: int = 2, seed: int = 0) -> Split:
    """Random images without a pixel at the mean; the label of an image is its number."""
    generator = torch.Generator().manual_seed(seed)
    x_nchw = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
    y_n = torch.arange(count)
    return Split(
        x_nchw, y_n, x_nchw[:1], y_n[:1], torch.tensor([101.3, 77.7][:channels]), torch.tensor([55.0, 60.0][:channels])
    )


def by_number(data: Split, **options: Any) -> dict[int, torch.Tensor]:
    """One epoch's images by their number."""
    drawn = {
        int(number): x_chw
        for x_nchw, y_n in batches(data, **options)
        for x_chw, number in zip(x_nchw, y_n, strict=True)
    }
    return dict(sorted(drawn.items()))


# The embedded data set


def test_digits_are_those_of_scikit_learn_each_once() -> None:
    images = load_images("digits")
    assert (images.train_x.shape, images.test_x.shape) == ((1498, 1, 8, 8), (299, 1, 8, 8))
    assert (images.train_x.dtype, images.train_y.dtype, images.classes) == (torch.uint8, torch.int64, 10)
    original = load_digits()
    expected = Counter(
        (pixels.tobytes(), int(label))
        for pixels, label in zip(np.rint(original.images * 255 / 16).astype(np.uint8), original.target, strict=True)
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
    assert len({data.make_images(*tensors).fingerprint for tensors in sets}) == len(sets)


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
    assert load_images("flowers").test_x.shape == (3, 1, 6, 6)


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
    with pytest.raises(DataError, match=r"'cifra10': unknown; try 'digits', 'fashion_mnist', 'cifar10', 'cifar100'"):
        load_images("cifra10")


@pytest.mark.usefixtures("data_root")
def test_a_folder_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DataError, match=r"dataset='\./none': no such folder"):
        load_images("./none")


def test_a_folder_without_images_is_an_error(data_root: Path) -> None:
    (data_root / "flowers").mkdir()
    with pytest.raises(DataError, match="files below its folder cannot be read"):
        load_images("flowers")


def test_columns_that_are_no_image_or_label_are_listed(data_root: Path) -> None:
    (data_root / "prose").mkdir()
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).to_parquet(data_root / "prose/train.parquet")
    with pytest.raises(DataError, match="found the columns text, label; expected an image"):
        load_images("prose")


def test_a_label_that_training_never_shows_is_an_error(data_root: Path) -> None:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(4), [0, 1] * 2)
    write_parquet(data_root / "flowers/test.parquet", random_pixels(2), [0, 2])
    with pytest.raises(DataError, match="label 2 is in the test split but not in the training split"):
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
    real = data._decode

    def counted(source: Any, image_size: int | None) -> Images:
        names.append(source.name)
        return real(source, image_size)

    monkeypatch.setattr(data, "_decode", counted)
    return names


def load_anew() -> Images:
    load_images.cache_clear()
    return load_images("flowers")


def same(one: Images, other: Images) -> bool:
    names = ("train_x", "train_y", "test_x", "test_y")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    equal = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    return equal and (one.classes, one.fingerprint) == (other.classes, other.fingerprint)


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


def test_a_source_of_the_same_size_but_newer_is_decoded_again(data_root: Path, decoded: list[str]) -> None:
    write_folder(data_root / "flowers", random_pixels(6), ["a", "b"], "bmp")
    first = load_anew()
    victim = data_root / "flowers" / "a" / "000.bmp"
    before = victim.stat()
    Image.fromarray(random_pixels(1, seed=1)[0]).save(victim)
    assert victim.stat().st_size == before.st_size
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert first.fingerprint != load_anew().fingerprint
    assert decoded == ["flowers"] * 2


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
def test_no_single_flip_or_cut_makes_the_cache_give_other_images() -> None:
    first = load_anew()
    content = cached_file().read_bytes()
    path = cached_file().with_name("damaged")
    damaged = [content[:n] + bytes([content[n] ^ (1 << n % 8)]) + content[n + 1 :] for n in range(len(content))]
    damaged += [content[:n] for n in range(0, len(content), 7)]
    for one in damaged:
        path.write_bytes(one)
        images = data._read_cache(path)
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
        data._write_cache(tmp_path / "cache" / "digits.safetensors", images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []
    data._write_cache(tmp_path / "cache" / "digits.safetensors", images)
    restored = data._read_cache(tmp_path / "cache" / "digits.safetensors")
    assert restored is not None
    assert same(restored, images)


# Splitting

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=120).map(torch.tensor)


@given(labels=label_lists, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
@settings(max_examples=100)
def test_carving_is_complete_disjoint_balanced_and_fixed(labels: torch.Tensor, fraction: float, seed: int) -> None:
    torch.manual_seed(seed)
    kept, part = carve(labels, fraction)
    assert sorted([*kept.tolist(), *part.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert part.tolist() == sorted(part.tolist())
    sizes = Counter(labels.tolist())
    carved = Counter(labels[part].tolist())
    for label, size in sizes.items():
        assert carved[label] in (1, size - 1) or abs(carved[label] - fraction * size) <= 0.5
        assert 1 <= carved[label] < size or (carved[label], size) == (0, 1)
    torch.manual_seed(seed + 1)
    again = carve(labels, fraction)
    assert torch.equal(again[0], kept)
    assert torch.equal(again[1], part)


def test_what_is_carved_is_not_simply_the_first_or_last_of_a_class() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    _, part = carve(labels, 0.2)
    assert 35 < (part % 100).double().mean() < 65


@given(labels=label_lists, data=st.data())
@settings(max_examples=100)
def test_balanced_subsets_nest_and_are_balanced_within_one(labels: torch.Tensor, data: st.DataObject) -> None:
    large = data.draw(st.integers(1, len(labels)))
    small = data.draw(st.integers(1, large))
    chosen = {count: balanced(labels, count).tolist() for count in (small, large)}
    assert set(chosen[small]) <= set(chosen[large])
    sizes = Counter(labels.tolist())
    for count, indices in chosen.items():
        assert len(set(indices)) == count
        taken = Counter(labels[indices].tolist())
        unfinished = [taken[label] for label, size in sizes.items() if taken[label] < size]
        assert not unfinished or max(taken.values()) <= min(unfinished) + 1


def some_images(count: int = 200, channels: int = 3) -> Images:
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([0, 40, 100])[:channels], torch.tensor([256, 90, 256])[:channels]
    x = torch.rand(count, channels, 5, 5, generator=generator) * (high - low).view(-1, 1, 1) + low.view(-1, 1, 1)
    y = torch.arange(count) % 4
    return data.make_images(x.to(torch.uint8), y, x[:4].to(torch.uint8), y[:4])


def rows_of(x_nchw: torch.Tensor) -> set[bytes]:
    return {x.numpy().tobytes() for x in x_nchw}


def test_the_validation_split_is_the_same_for_any_number_of_training_images() -> None:
    images = some_images()
    splits = [split(images, 0.25, count) for count in (None, 40, 100)]
    assert [len(part.train_y) for part in splits] == [152, 40, 100]
    assert all(torch.equal(part.validation_x, splits[0].validation_x) for part in splits)
    assert splits[0].validation_y.bincount().tolist() == [12] * 4
    assert rows_of(splits[1].train_x) < rows_of(splits[2].train_x) < rows_of(splits[0].train_x)
    assert not rows_of(splits[0].train_x) & rows_of(splits[0].validation_x)


def test_more_training_images_than_there_are_is_an_error() -> None:
    assert len(split(some_images(), 0.5, 100).train_y) == 100
    with pytest.raises(DataError, match="train_images=101: only 100 are left beside the validation split"):
        split(some_images(), 0.5, 101)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_training_images_have_mean_0_and_deviation_1(channels: int) -> None:
    part = split(some_images(channels=channels), 0.1)
    pixels = part.train_x.numpy().astype(np.float64)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    np.testing.assert_allclose(part.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(part.std, std, rtol=1e-6)
    normalised = part.normalise(part.train_x)
    assert normalised.dtype == torch.float32
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(normalised, expected, atol=1e-5)
    np.testing.assert_allclose(normalised.double().mean((0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(normalised.double().std((0, 2, 3), correction=0), 1, atol=1e-6)


def test_a_channel_that_is_the_same_everywhere_becomes_0() -> None:
    images = some_images()
    x = images.train_x.clone()
    x[:, 1] = 7
    part = split(replace(images, train_x=x), 0.1)
    assert part.normalise(part.train_x)[:, 1].unique().tolist() == [0.0]


# Batches


@pytest.mark.parametrize("batch_size", [1, 7, 20, 40, 41, 1000])
def test_an_epoch_shows_each_image_at_most_once_and_no_partial_batch(batch_size: int) -> None:
    steps = [y_n for _, y_n in batches(toy(40), batch_size=batch_size, seed=0, epoch=0)]
    size = min(batch_size, 40)
    assert [len(y_n) for y_n in steps] == [size] * (40 // size)
    shown = torch.cat(steps).tolist()
    assert len(set(shown)) == len(shown)


def test_batches_are_float32_in_channels_last_with_the_right_labels() -> None:
    part = toy(40)
    for x_nchw, y_n in batches(part, batch_size=10, seed=0, epoch=0, flip=True, shift=1, cutout=2):
        assert (x_nchw.shape, x_nchw.dtype, y_n.dtype) == ((10, 2, 7, 7), torch.float32, torch.int64)
        assert x_nchw.is_contiguous(memory_format=torch.channels_last)
    for x_nchw, y_n in batches(part, batch_size=10, seed=0, epoch=0):
        assert torch.equal(x_nchw, part.normalise(part.train_x[y_n]))


def order(seed: int, epoch: int, **options: Any) -> list[int]:
    return torch.cat([y for _, y in batches(toy(40), batch_size=8, seed=seed, epoch=epoch, **options)]).tolist()


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    orders = {tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    torch.manual_seed(1)
    assert order(3, 2) == order(3, 2, flip=True, shift=2, cutout=3)
    large = torch.cat([y for _, y in batches(toy(40), batch_size=20, seed=3, epoch=2)]).tolist()
    assert large == order(3, 2), "for batches of any size"


def test_the_first_batch_is_drawn_from_all_images_alike() -> None:
    part = toy(40)
    first = Counter(int(next(batches(part, batch_size=1, seed=0, epoch=epoch))[1]) for epoch in range(2000))
    assert stats.chisquare([first[number] for number in range(40)]).pvalue > 1e-4


AUGMENTATIONS = [{"flip": True}, {"shift": 3}, {"cutout": 4}, {"flip": True, "shift": 2, "cutout": 3}]


@pytest.mark.parametrize("options", AUGMENTATIONS, ids=str)
def test_an_image_is_moved_the_same_way_in_any_batch(options: dict[str, Any]) -> None:
    part = toy(40)
    alone = by_number(part, batch_size=1, seed=5, epoch=6, **options)
    assert len(alone) == 40
    for batch_size in (7, 40):
        together = by_number(part, batch_size=batch_size, seed=5, epoch=6, **options)
        assert len(together) >= 35
        assert all(torch.equal(x_chw, alone[number]) for number, x_chw in together.items())


@pytest.mark.parametrize("options", AUGMENTATIONS, ids=str)
def test_an_image_is_moved_otherwise_at_another_seed_or_epoch(options: dict[str, Any]) -> None:
    part = toy(40)
    base = by_number(part, batch_size=40, seed=5, epoch=6, **options)
    for changes in ({"seed": 6}, {"epoch": 7}):
        other = by_number(part, batch_size=40, **({"seed": 5, "epoch": 6} | changes), **options)
        moved = sum(not torch.equal(x_chw, other[number]) for number, x_chw in base.items())
        assert moved >= 10, "a flip is the same by chance in half of the cases"


def test_equal_images_are_moved_each_in_its_own_way() -> None:
    part = toy(40)
    part = replace(part, train_x=part.train_x[:1].expand(40, -1, -1, -1))
    moved = by_number(part, batch_size=40, seed=0, epoch=0, flip=True, shift=3)
    assert len(rows_of(torch.stack(list(moved.values())))) > 25  # of 98 ways


def augmented_slowly(
    part: Split, number: int, seed: int, epoch: int, flip: bool, shift: int, cutout: int
) -> np.ndarray[Any, Any]:
    """One image pixel by pixel, from the numbers drawn for it: moved, mirrored, normalised, a square cut out."""

    def drawn(stream: int, choices: int) -> int:
        return int(data._draw(seed, epoch, torch.tensor([number]), stream, choices))

    source = part.train_x[number].numpy().astype(np.float64)
    channels, height, width = source.shape
    down, right = (drawn(stream, 2 * shift + 1) - shift if shift else 0 for stream in (1, 2))
    moved = np.zeros(source.shape)
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                moved[:, i, j] = source[:, i + down, j + right]
    if flip and drawn(0, 2) == 1:
        moved = np.stack([np.fliplr(moved[c]) for c in range(channels)])
    result = (moved - part.mean.view(-1, 1, 1).numpy()) / part.std.view(-1, 1, 1).numpy()
    if cutout:
        top, left = (drawn(stream, side) - cutout // 2 for stream, side in ((3, height), (4, width)))
        for i in range(max(top, 0), min(top + cutout, height)):
            for j in range(max(left, 0), min(left + cutout, width)):
                result[:, i, j] = 0
    return result


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 9])
@pytest.mark.parametrize("cutout", [0, 1, 4, 20])
def test_augmentation_is_that_of_a_slow_loop(flip: bool, shift: int, cutout: int) -> None:
    part = toy(12)
    images = by_number(part, batch_size=6, seed=3, epoch=4, flip=flip, shift=shift, cutout=cutout)
    for number, x_chw in images.items():
        expected = augmented_slowly(part, number, 3, 4, flip, shift, cutout)
        np.testing.assert_allclose(x_chw, expected, atol=1e-5)


def drawn_slowly(seed: int, epoch: int, number: int, stream: int, choices: int) -> int:
    """SplitMix64's finaliser after each part, on whole numbers modulo 2^64."""
    h = number
    for part in (seed, epoch, stream):
        h = (h + (part + 1) * 0x9E3779B97F4A7C15) % 2**64
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB % 2**64
        h ^= h >> 31
    return (h >> 16) % 2**32 % choices


@given(
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 10_000),
    numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    stream=st.integers(0, 4),
    choices=st.integers(1, 1000),
)
def test_draws_are_those_of_exact_arithmetic(
    seed: int, epoch: int, numbers: list[int], stream: int, choices: int
) -> None:
    drawn = data._draw(seed, epoch, torch.tensor(numbers), stream, choices).tolist()
    assert drawn == [drawn_slowly(seed, epoch, number, stream, choices) for number in numbers]


def marked(count: int, side: int, row: int, column: int) -> torch.Tensor:
    """Black images with one white pixel."""
    x_nchw = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    x_nchw[:, :, row, column] = 255
    return x_nchw


def test_flips_and_all_shifts_are_equally_frequent_and_independent() -> None:
    count, shift, side = 20_000, 2, 13
    drawn = data.draw_augmentation(7, 1, count, (side, side), shift=shift)
    x_nhwc = marked(count, side, 6, 3).permute(0, 2, 3, 1)
    x_nchw = data.move(x_nhwc, drawn.mirrored, drawn.down, drawn.right, shift).permute(0, 3, 1, 2)
    assert x_nchw.flatten(1).long().sum(1).unique().tolist() == [255], "no mark is lost or doubled"
    places = Counter(x_nchw.flatten(1).long().argmax(1).tolist())
    expected = {
        (6 + down) * side + start + right for start in (3, 9) for down in range(-2, 3) for right in range(-2, 3)
    }
    assert set(places) == expected
    assert stats.chisquare(list(places.values())).pvalue > 1e-4
    flipped = sum(times for place, times in places.items() if place % side > 6)
    assert abs(flipped / count - 0.5) < 0.02


def test_the_shifts_of_two_epochs_and_of_two_seeds_are_independent() -> None:
    numbers = torch.arange(20_000)
    first = data._draw(0, 0, numbers, 1, 5)
    for seed, epoch in ((0, 1), (1, 0), (1, 1)):
        pairs = (first * 5 + data._draw(seed, epoch, numbers, 1, 5)).bincount(minlength=25)
        assert stats.chisquare(pairs.tolist()).pvalue > 1e-4
    neighbours = (first[:-1] * 5 + first[1:]).bincount(minlength=25)
    assert stats.chisquare(neighbours.tolist()).pvalue > 1e-4


@pytest.mark.parametrize("cutout", [1, 2, 3, 6, 30])
def test_cutout_sets_one_square_to_the_mean_and_never_more_than_asked(cutout: int) -> None:
    part = toy(300, side=9)
    images = by_number(part, batch_size=300, seed=0, epoch=0, cutout=cutout)
    areas = []
    for number, x_chw in images.items():
        cut_hw = (x_chw == 0).all(0)
        assert torch.equal((x_chw == 0).any(0), cut_hw), "the same place in all channels"
        rows, columns = cut_hw.any(1), cut_hw.any(0)
        assert torch.equal(cut_hw, rows.unsqueeze(1) & columns), "a rectangle"
        assert max(int(rows.sum()), int(columns.sum())) <= cutout
        untouched = part.normalise(part.train_x[number].unsqueeze(0))[0]
        assert torch.equal(x_chw[:, ~cut_hw], untouched[:, ~cut_hw])
        areas.append(int(cut_hw.sum()))
    assert min(areas) >= 1
    assert max(areas) == min(cutout, 9) ** 2


def test_every_pixel_is_cut_out_sometimes() -> None:
    drawn = data.draw_augmentation(0, 0, 9_000, (6, 6), shift=0)
    cut = data.square((6, 6), drawn.cut_row, drawn.cut_column, 1)
    assert stats.chisquare(cut.sum(0).flatten().tolist()).pvalue > 1e-4


def test_augmentation_leaves_the_images_themselves_alone() -> None:
    part = toy(40)
    before = part.train_x.clone()
    by_number(part, batch_size=10, seed=0, epoch=0, flip=True, shift=3, cutout=3)
    assert torch.equal(part.train_x, before)
