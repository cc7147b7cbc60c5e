"""Images decoded on demand equal the same images in memory."""

import io
import os
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torch import Tensor, nn
from torch.nn.functional import interpolate

from spectrum.data import kept
from spectrum.data import splits as data_module
from spectrum.data.augment import batches
from spectrum.data.load import load_images
from spectrum.data.pixels import DataError, Decoder, Encoded, Stored, channels_of, decode_all, in_turn
from spectrum.data.splits import Images, balanced, carve, split
from spectrum.data.teacher import relabelled
from spectrum.design.run import RunConfig
from spectrum.training.evaluation import evaluate
from spectrum.training.loop import train
from tests.data.stored import Pixels, as_nchw, encoded, random_pixels, write_folder, write_parquet
from tests.data.test_load import PICKLES, Canary


def stored(files: Sequence[bytes]) -> Stored:
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = [{"bytes": file, "path": None} for file in files]
    return Stored("flowers", "train", datasets.Dataset.from_dict({"image": rows}, features=features), "image")


# Decoding


@pytest.mark.parametrize(("height", "width"), [(64, 80), (80, 64), (64, 64)])
def test_a_centre_crop_is_the_middle_of_the_image_scaled_whole(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cropped = torch.tensor(Decoder(28, "centre_crop")(encoded(pixels)))
    halved = interpolate(as_nchw([pixels]).double(), (height // 2, width // 2), mode="bilinear", antialias=True)[0]
    top, left = (height // 2 - 28) // 2, (width // 2 - 28) // 2  # 28 of the shorter side's 32
    expected = halved[:, top : top + 28, left : left + 28].permute(1, 2, 0)
    assert (cropped - expected).abs().max() < 1.5


def test_a_centre_crop_of_an_odd_rest_lies_within_a_pixel_of_the_middle() -> None:
    ramp = np.broadcast_to(np.arange(150, dtype=np.uint8), (100, 150)).copy()  # a pixel tells its column
    columns = Decoder(50, "centre_crop")(encoded(ramp))[..., 0].astype(float)
    assert np.allclose(columns, 74.5 + 87.5 / 50 * (np.arange(50) - 24.5), atol=0.6)


def test_grey_images_among_coloured_ones_become_coloured_wherever_they_stand() -> None:
    grey, coloured = random_pixels(2), random_pixels(2, channels=3, seed=1)
    expected = as_nchw([*(np.repeat(pixels[..., None], 3, 2) for pixels in grey), *coloured])
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [2, 3, 0, 1]):
        files = [encoded([*grey, *coloured][number]) for number in order]
        assert torch.equal(decode_all(stored(files), Decoder()), expected[order])
    assert decode_all(stored([encoded(pixels) for pixels in grey]), Decoder()).shape == (2, 1, 6, 6)


# What a file says becomes of its pixels


def saved(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **how)
    return file.getvalue()


def png(values: Pixels, colour: int, transparent: Sequence[int] = ()) -> bytes:
    """A PNG file of 16-bit values (H, W, C), written by hand: colour types 0 grey, 2 RGB, 4 and 6 with alpha.

    `transparent` is the one colour that a tRNS chunk names.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    named = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    data = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + named + data + chunk(b"IEND", b"")


def tiff(values: np.ndarray[Any, Any], photometric: int | None, signed: bool = False) -> bytes:
    """A TIFF file of grey values (H, W), written by hand after TIFF 6.0: little-endian, one strip, not compressed."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: 2 if signed else 1}
    fields = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items() if value is not None]
    directory = struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """As EXIF 2.32 has it: which sides of the picture row 0 and column 0 of the file are."""
    picture = pixels.T if orientation >= 5 else pixels
    rows_from_below, columns_from_right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return picture[:: -1 if rows_from_below else 1, :: -1 if columns_from_right else 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_exif_orientation_turns_an_image_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50, 8, 0), 8, 1)
    how = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    decoded = Decoder(channels=1)(saved(Image.fromarray(pixels), kind, exif=exif, **how))[..., 0]
    assert decoded.shape == turned(pixels, orientation).shape
    assert np.abs(decoded.astype(int) - turned(pixels, orientation)).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_that_cannot_be_read_says_nothing() -> None:
    pixels = random_pixels(1)[0]
    for exif in (b"", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        assert np.array_equal(Decoder()(saved(Image.fromarray(pixels), exif=exif))[..., 0], pixels)


@given(values=st.lists(st.integers(0, 65_535), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_16_bit_greys_are_scaled_from_their_whole_range_or_refused(values: list[int]) -> None:
    values16 = np.array(values, np.uint16).reshape(2, 2)
    span = max(values) - min(values)
    for file in (
        saved(Image.fromarray(values16)),
        saved(Image.fromarray(values16), "TIFF"),
        png(values16[..., None], 0),
    ):
        if span and span < 65_535 / 16:
            with pytest.raises(ValueError, match=r"of 0 to 65,535, span less than a sixteenth"):
                Decoder()(file)
        else:
            assert np.array_equal(Decoder()(file)[..., 0], np.rint(values16 / 257).astype(np.uint8))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colours_keep_their_upper_bytes_or_are_refused(colour: int, channels: int) -> None:
    values = np.arange(16 * channels, dtype=np.uint16).reshape(4, 4, channels) * (65_535 // (16 * channels - 1))
    values[..., 3:] = 65_535
    assert np.array_equal(Decoder()(png(values, colour)), values[..., :3] >> 8)
    with pytest.raises(ValueError, match="span less than a sixteenth"):
        Decoder()(png(values >> 8, colour))


@pytest.mark.parametrize("photometric", [None, 0, 1])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_file_whose_0_is_white_is_read_so_with_any_bits(bits: int, photometric: int | None) -> None:
    most = 2**bits - 1
    values = np.array([[0, most], [most // 3, most // 5]], f"uint{bits}")
    expected = np.rint((values if photometric else most - values) / (most / 255)).astype(np.uint8)
    assert np.array_equal(Decoder()(tiff(values, photometric))[..., 0], expected)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_numbers_of_any_bits_are_refused(bits: int) -> None:
    values = np.array([[-100, -1], [0, 100]], f"int{bits}")
    with pytest.raises(
        ValueError, match=r"pixels are signed integers of no known range \(mode [LI]\); store them with"
    ):
        Decoder()(tiff(values, 1, signed=True))


@pytest.mark.parametrize(("colour", "channels"), [(4, 2), (6, 4)])
def test_transparent_pixels_do_not_widen_the_range_of_16_bits(colour: int, channels: int) -> None:
    values = np.full((4, 4, channels), 300, np.uint16)
    values[..., -1] = 65_535
    values[0] = np.arange(4)[:, None] * 100
    values[1, :, :-1], values[1:3, :, -1] = 65_535, 0  # where nothing is seen
    values[0, :, -1] = 65_535
    with pytest.raises(ValueError, match="span less than a sixteenth"):
        Decoder()(png(values, colour))
    values[..., -1] = np.arange(16).reshape(4, 4) * 17  # numbers of 8 bits, in the alpha channel too
    with pytest.raises(ValueError, match=r"span less than a sixteenth|all its pixels become equal"):
        Decoder()(png(values, colour))


def test_a_transparent_grey_does_not_widen_the_range_of_16_bits() -> None:
    values = np.array([[0, 10], [20, 65_535]], np.uint16)[..., None]
    with pytest.raises(ValueError, match="span less than a sixteenth"):
        Decoder()(png(values, 0, [65_535]))


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    values = np.arange(48, dtype=np.uint16).reshape(4, 4, 3) * 1_300
    with pytest.raises(ValueError, match="marks one colour of 16 bits as transparent"):
        Decoder()(png(values, 2, values[0, 0].tolist()))


@pytest.mark.parametrize("kind", ["uint8 in int32", "0 to 1", "wide int32", "uint16 in int32"])
def test_numbers_of_no_known_range_are_refused(kind: str) -> None:
    ramp = np.arange(64).reshape(8, 8)
    arrays = {
        "uint8 in int32": ramp * 4,
        "0 to 1": ramp / 63,
        "wide int32": ramp * 100_000,
        "uint16 in int32": ramp * 900,
    }
    values = arrays[kind].astype(np.float32 if kind == "0 to 1" else np.int32)
    with pytest.raises(ValueError, match=r"of no known range \(mode [IF]\); store them with 8 or 16 bits"):
        Decoder()(saved(Image.fromarray(values), "TIFF"))


def test_a_netpbm_file_says_its_range() -> None:
    assert Decoder()(b"P5 2 2 1000 " + np.array([0, 250, 500, 1000], ">u2").tobytes()).ravel().tolist() == [
        0,
        64,
        128,
        255,
    ]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L with a transparent grey"])
def test_transparent_pixels_show_white(mode: str) -> None:
    alpha = np.array([[255, 0], [128, 255]], np.uint8)
    grey = np.array([[0, 50], [0, 200]], np.uint8)
    expected = np.rint(grey * (alpha / 255) + 255 * (1 - alpha / 255)).astype(np.uint8)
    how: dict[str, Any] = {}
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).convert(
        "RGBA" if mode == "RGBA" else "LA"
    )
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
        image.putpalette([channel for value in grey.ravel() for channel in [int(value)] * 3])
        how = {"transparency": bytes(alpha.ravel().tolist())}
    elif mode.startswith("L with"):
        image, how = Image.fromarray(grey), {"transparency": 50}
        expected = np.where(grey == 50, 255, grey)
    decoded = Decoder()(saved(image, **how))
    assert np.abs(decoded.astype(int) - expected[..., None]).max() <= 1


def test_a_picture_that_is_drawn_in_alpha_alone_stays_a_picture_or_is_refused() -> None:
    alpha = random_pixels(1, side=16)[0]
    drawn = {ink: np.dstack([np.full((16, 16, 3), ink, np.uint8), alpha]) for ink in (0, 255)}
    black = Decoder()(saved(Image.fromarray(drawn[0])))
    assert np.abs(black[..., 0].astype(int) - (255 - alpha)).max() <= 1
    with pytest.raises(ValueError, match="all its pixels become equal on a white background, though they differ"):
        Decoder()(saved(Image.fromarray(drawn[255])))
    assert (Decoder()(encoded(np.full((4, 4), 7, np.uint8))) == 7).all(), "an image may be of one grey"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_an_image_of_several_frames_is_refused(kind: str) -> None:
    frames = [Image.fromarray(pixels) for pixels in random_pixels(3, channels=3)]
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(
        DataError, match=r"image 0 of the train split cannot be decoded \(it has 3 frames; store one image"
    ):
        decode_all(stored([file]), Decoder())
    assert Decoder()(saved(frames[0], kind)).shape == (6, 6, 3)


def test_bits_and_colours_of_other_modes() -> None:
    checks = np.indices((4, 4)).sum(0) % 2 == 1
    assert np.array_equal(Decoder()(saved(Image.fromarray(checks)))[..., 0], checks * np.uint8(255))
    colours = Image.fromarray(random_pixels(1, channels=3)[0])
    assert np.array_equal(Decoder()(saved(colours.convert("CMYK"), "TIFF")), np.asarray(colours))
    profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
    lab = ImageCms.profileToProfile(colours, *profiles, outputMode="LAB")
    assert lab is not None
    assert np.abs(Decoder()(saved(lab, "TIFF")).astype(int) - np.asarray(colours)).mean() < 3


# As they are asked for


@pytest.fixture(scope="module")
def both() -> tuple[Tensor, Encoded]:
    """The same images in memory and encoded: more than are read at once."""
    files = [encoded(pixels) for pixels in random_pixels(1_100, channels=3)]
    decoder = Decoder(5, channels=3)
    return decode_all(stored(files), decoder), Encoded(stored(files), decoder)


@pytest.mark.medium
@given(numbers=st.lists(st.integers(0, 1_099), min_size=1, max_size=600), start=st.integers(0, 1_099))
@settings(max_examples=20, deadline=None)
def test_any_part_is_that_of_the_tensor(numbers: list[int], start: int, both: tuple[Tensor, Encoded]) -> None:
    in_memory, as_asked = both
    assert as_asked.shape == in_memory.shape
    for chosen in (torch.tensor(numbers), slice(start, None)):
        part = as_asked[chosen]
        assert (part.shape, len(part)) == (in_memory[chosen].shape, len(in_memory[chosen]))
        assert torch.equal(part.decode(), in_memory[chosen].permute(0, 2, 3, 1))
    again = torch.tensor([len(numbers) - 1, 0])
    of_a_part = as_asked[torch.tensor(numbers)][again].decode()
    assert torch.equal(of_a_part, in_memory[torch.tensor(numbers)][again].permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [1, 7, 600, 1_100])
def test_parts_come_in_turn_from_either(size: int, both: tuple[Tensor, Encoded]) -> None:
    parts = torch.randperm(1_100, generator=torch.Generator().manual_seed(0))[:700].split(size)
    for one, other in zip(*(in_turn(pixels, parts) for pixels in both), strict=True):
        assert torch.equal(one, other)
    assert list(in_turn(both[1], [])) == []


def test_one_part_is_decoded_ahead_and_no_more(both: tuple[Tensor, Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = Encoded.decode

    def decode(pixels: Encoded) -> Tensor:
        asked.append(int(pixels.numbers[0]))
        return real(pixels)

    monkeypatch.setattr(Encoded, "decode", decode)
    for number, x_nhwc in enumerate(in_turn(both[1], torch.arange(100).split(10))):
        assert len(x_nhwc) == 10
        time.sleep(0.02)  # for what is ahead to begin
        assert asked == list(range(0, min(10 * (number + 2), 100), 10))


def test_a_file_that_breaks_later_is_named(data_root: Path) -> None:
    write_folder(data_root / "flowers", random_pixels(40, channels=3), ["a", "b"])
    as_asked = kept_encoded("flowers", 5)
    victim = sorted((data_root / "flowers" / "a").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:60])
    run = RunConfig(dataset="flowers", image_size=5, batch_size=4, epochs=1, width=0.25)
    with pytest.raises(DataError, match=rf"image 3 of the train split \({victim}\) cannot be decoded"):
        train(run, as_asked)


def test_a_file_that_changes_later_is_refused_by_name(data_root: Path) -> None:
    write_folder(data_root / "flowers", random_pixels(40, channels=3), ["a", "b"])
    as_asked = kept_encoded("flowers", 6).train_x
    assert isinstance(as_asked, Encoded)
    assert as_asked.stored.split == "train"
    before = as_asked.decode()
    victim = sorted((data_root / "flowers" / "a").iterdir())[3]
    content, status = victim.read_bytes(), victim.stat()
    victim.write_bytes(encoded(random_pixels(1, channels=3, seed=9)[0]))
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=rf"image 3 of the train split \({victim}\) cannot be decoded: its file has ch"):
        Encoded(as_asked.stored, as_asked.decoder).decode()
    victim.write_bytes(content)  # written anew, and yet the same
    assert torch.equal(as_asked.decode(), before)


@pytest.mark.parametrize("how", PICKLES)
def test_a_pickle_in_place_of_an_encoded_image_is_not_loaded(data_root: Path, how: str) -> None:
    for part in ("train", "test"):
        write_folder(data_root / "flowers" / part, random_pixels(4, channels=3), ["a", "b"])
    as_asked, canary = kept_encoded("flowers", 5), Canary(data_root / "sung")
    assert isinstance(as_asked.train_x, Encoded)
    victim = data_root / "flowers" / "train" / "b" / "003.png"
    victim.write_bytes(PICKLES[how](canary))
    for read in (as_asked.train_x.decode, lambda: kept_encoded("flowers", 6)):
        with pytest.raises(DataError, match=rf"image 3 of the train split \({victim}\) cannot be decoded"):
            read()
    assert not canary.folder.exists()


# From a folder to a result


@pytest.fixture
def flowers(data_root: Path) -> Path:
    """Photographs of two kinds, of mixed sizes, one of them grey."""
    folder = data_root / "flowers"
    generator = np.random.default_rng(0)
    for split_name, count in (("train", 60), ("val", 11)):
        for number in range(count):
            height, width = generator.integers(20, 60, 2)
            tone = np.array([200, 80, 80] if number % 2 else [60, 60, 180])
            pixels = np.clip(generator.normal(tone, 40, (height, width, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels).convert("L" if number == 0 else "RGB")
            target = folder / split_name / ("rose" if number % 2 else "iris")
            target.mkdir(parents=True, exist_ok=True)
            image.save(target / f"{number:03}.JPEG", quality=90)
    return folder


def kept_encoded(*how: Any) -> Images:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECTRUM_IMAGES_GB", "0")
        load_images.cache_clear()
        images = load_images(*how)
    load_images.cache_clear()
    assert isinstance(images.train_x, Encoded)
    assert isinstance(images.test_x, Encoded)
    return images


@pytest.mark.parametrize("resize", ["stretch", "centre_crop"])
@pytest.mark.usefixtures("flowers")
def test_images_that_stay_encoded_are_those_in_memory(resize: Any) -> None:
    in_memory, as_asked = load_images("flowers", 16, resize), kept_encoded("flowers", 16, resize)
    assert in_memory.shape == as_asked.shape == (3, 16, 16)
    assert in_memory.classes == as_asked.classes == 2
    for name in ("train", "test"):
        assert torch.equal(getattr(in_memory, f"{name}_y"), getattr(as_asked, f"{name}_y"))
        decoded = getattr(as_asked, f"{name}_x").decode().permute(0, 3, 1, 2)
        assert torch.equal(getattr(in_memory, f"{name}_x"), decoded)


def test_without_a_test_split_both_have_the_same_sixth(data_root: Path) -> None:
    write_parquet(data_root / "flowers/train.parquet", random_pixels(90, channels=3), [0, 1, 2] * 30)
    in_memory, as_asked = load_images("flowers", 6), kept_encoded("flowers", 6)
    assert isinstance(as_asked.test_x, Encoded)
    assert torch.equal(as_asked.test_x.decode().permute(0, 3, 1, 2), torch.as_tensor(in_memory.test_x))
    assert torch.equal(as_asked.test_y, in_memory.test_y)


@pytest.mark.parametrize("normalisation", ["moments", "plus_minus_one"])
@pytest.mark.usefixtures("flowers")
def test_training_gives_the_same_weights_and_scores(normalisation: Any) -> None:
    said = {"dataset": "flowers", "image_size": 16, "train_images": 40, "normalisation": normalisation}
    run = RunConfig(**said, epochs=2, batch_size=8, width=0.25, flip=True, shift=1, cutout=3, ema=0.9)
    one, other = train(run, load_images("flowers", 16)), train(run, kept_encoded("flowers", 16))
    assert one.weights_sha256 == other.weights_sha256
    scores = ("test_accuracy", "test_loss", "val_accuracy", "val_loss", "train_loss", "test_images")
    assert [getattr(one, name) for name in scores] == [getattr(other, name) for name in scores]


@pytest.mark.usefixtures("flowers")
def test_plus_minus_one_is_what_keras_does(keras: Any) -> None:
    images = load_images("flowers", 16)
    data = split(images, 0.1, normalisation="plus_minus_one")
    pixels = torch.as_tensor(images.test_x)
    expected = keras.applications.xception.preprocess_input(pixels.permute(0, 2, 3, 1).numpy().astype(np.float32))
    assert torch.allclose(data.normalise(pixels).permute(0, 2, 3, 1), torch.from_numpy(expected), atol=1e-6)
    x_nchw, _ = next(batches(data, batch_size=50, seed=0, epoch=0))
    assert x_nchw.min() >= -1
    assert x_nchw.max() <= 1


def test_moments_of_encoded_images_are_those_of_a_balanced_part(
    both: tuple[Tensor, Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "MOMENTS_OF", 600)
    labels = torch.arange(1_100) % 4
    as_asked = Images(both[1], labels, both[1], labels, 4, "")
    kept, _ = carve(labels, 0.1)
    part = kept[balanced(labels[kept], 600)]
    expected = both[0][part].double()
    found = split(as_asked, 0.1)
    assert torch.allclose(found.mean.double(), expected.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(found.std.double(), expected.std((0, 2, 3), correction=0), rtol=1e-6)


@pytest.mark.usefixtures("flowers")
def test_the_files_are_read_once_for_their_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(kept, "channels_of", lambda file: read.append(len(file)) or channels_of(file))
    first = kept_encoded("flowers", 16)
    assert len(read) == 71
    assert kept_encoded("flowers", 16).fingerprint == first.fingerprint
    assert len(read) == 71
    assert kept_encoded("flowers", 16, "centre_crop").fingerprint != first.fingerprint


@pytest.mark.usefixtures("flowers")
@pytest.mark.parametrize("content", [*PICKLES, "{", "null", "[]", '{"version": 1}'])
def test_what_is_no_record_of_a_fingerprint_is_made_anew(content: str, tmp_path: Path) -> None:
    first, canary = kept_encoded("flowers", 16), Canary(tmp_path / "sung")
    (survey,) = Path(os.environ["SPECTRUM_CACHE"]).glob("*.json")
    whole = survey.read_bytes()
    survey.write_bytes(PICKLES[content](canary) if content in PICKLES else content.encode())
    assert kept_encoded("flowers", 16).fingerprint == first.fingerprint
    assert survey.read_bytes() == whole
    assert not canary.folder.exists()


def test_a_fingerprint_of_files_sees_every_byte_label_and_size(data_root: Path) -> None:
    def of(files: list[Pixels], labels: list[int], image_size: int = 5) -> str:
        write_parquet(data_root / "flowers/train.parquet", files, labels)
        write_parquet(data_root / "flowers/test.parquet", files[:4], labels[:4])
        return kept_encoded("flowers", image_size).fingerprint

    files, labels = random_pixels(8), [0, 1] * 4
    changed = [*files[:5], files[5] ^ 1, *files[6:]]
    prints = [of(files, labels), of(changed, labels), of(files, [0, 1, 1, 0] * 2), of(files, labels, 6)]
    assert len(set(prints)) == 4
    assert of(files, labels) == prints[0]


@pytest.mark.usefixtures("flowers")
def test_what_memory_may_hold_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gigabytes = 71 * 3 * 16 * 16 / 1e9
    for most, stays in ((gigabytes * 1.01, True), (gigabytes * 0.99, False)):
        monkeypatch.setenv("SPECTRUM_IMAGES_GB", f"{most:.9f}")
        load_images.cache_clear()
        assert isinstance(load_images("flowers", 16).train_x, Tensor) == stays
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv("SPECTRUM_IMAGES_GB", wrong)
        load_images.cache_clear()
        with pytest.raises(DataError, match=f"SPECTRUM_IMAGES_GB='{wrong}': expected a number of gigabytes"):
            load_images("flowers", 16)


def test_too_many_images_of_no_said_size_ask_for_one(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(data_root / "flowers", random_pixels(12), ["a", "b"])
    monkeypatch.setenv("SPECTRUM_IMAGES_GB", "0.0000001")
    with pytest.raises(DataError, match=r"its 12 images would take 1.3e-06 GB. Set image_size"):
        load_images("flowers")


@pytest.mark.usefixtures("flowers")
def test_a_teacher_needs_images_in_memory() -> None:
    with pytest.raises(DataError, match=r"raise \$SPECTRUM_IMAGES_GB"):
        relabelled(kept_encoded("flowers", 16), segments=1, label_noise=0.0, seed=0)


@pytest.mark.parametrize(("pixels", "most"), [((3, 299, 299), 23), ((3, 64, 64), 500), ((1, 2_000, 2_000), 1)])
def test_large_images_are_evaluated_in_small_batches(pixels: tuple[int, int, int], most: int) -> None:
    seen: list[int] = []

    class Constant(nn.Module):
        def forward(self, x_nchw: Tensor) -> Tensor:
            seen.append(len(x_nchw))
            return torch.zeros(len(x_nchw), 2)

    count = most + 1
    x_nchw = torch.zeros(count, 1, 1, 1, dtype=torch.uint8).expand(count, *pixels)
    evaluate(Constant(), lambda x: x[:, :, :1, :1].float(), x_nchw, torch.zeros(count, dtype=torch.long), device="cpu")
    assert seen == [most, 1]
