"""Decode images to uint8 pixels with threads: all at once into memory, or part by part on demand.

    Stored(…)  →  decode_all(stored, decoder)  →  a tensor, uint8 (N, C, H, W)
               →  Encoded(stored, decoder, …)  →  behaves like such a tensor, but leaves the files on disk
    in_turn(either, parts)  →  pixels of one part after the other, the next decoded while one is in use

Decoding and resizing release Python's lock, so threads use all cores, and nothing is sent between processes.

EXIF orientation is applied, transparent pixels become white, and 16 bits become 8 by the full range. An image whose
values have no known range, that has several frames, or that 8 bits cannot show is refused.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Resize = Literal["stretch", "centre_crop"]
Array = np.ndarray[Any, np.dtype[np.uint8]]
T = TypeVar("T")
U = TypeVar("U")

ROWS = 512  # images read from a table at once
# The least part of the 16-bit range that an image must span to keep more than 16 of 256 levels.
LEAST_SPAN = 1 / 16
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # in TIFF: a tag, and its value for files whose 0 is white
SAMPLE_FORMAT, SIGNED = 339, 2  # a tag with a value per channel
MANY = ("GIF", "PNG", "TIFF", "WEBP")  # formats whose further frames are separate images, not previews
UPRIGHT = {  # EXIF orientation to what turns the image upright; the values are those of PIL.Image.Transpose
    2: 0,  # mirrored left to right
    3: 3,  # by 180°
    4: 1,  # mirrored top to bottom
    5: 5,  # transposed
    6: 4,  # by 270°
    7: 6,  # transverse
    8: 2,  # by 90°
}
# Pillow reads more formats, some of them, such as EPS, by starting a program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
CENTRE = 0.875  # part of the shorter side that a centre crop keeps: 299 of 342 pixels, 224 of 256


class DataError(ValueError):
    """Images that cannot be loaded; the message says what is missing or broken, and what would work."""


class _ChangedError(Exception):
    """A file whose content has changed since the data set was read."""


@dataclass(frozen=True)
class Stored:
    """One split of a data set as it is stored."""

    dataset: str
    split: str
    table: (
        Any  # table[numbers][column] is a list of bytes, or of dicts with "bytes" or "path"; a datasets.Dataset, say.
    )
    # Where a dict has "sha256" as well, other bytes are refused.
    column: str  # column with the encoded images
    paths: bool = True  # False: images are in the table, and paths to others are not followed

    def __len__(self) -> int:
        return len(self.table)

    def each(self, function: Callable[[bytes], T], numbers: Sequence[int] | None = None) -> Iterator[T]:
        """Apply a function to each image's bytes, in order. Raises DataError that names the image at which it fails.

        Args:
            function: called in threads, as many as torch has.
            numbers: indices of the images; by default all.
        """
        numbers = range(len(self)) if numbers is None else numbers
        for start in range(0, len(numbers), ROWS):
            some = numbers[start : start + ROWS]
            rows = self.table[some][self.column]
            yield from _threads(torch.get_num_threads()).map(partial(self._one, function), some, rows)

    def named(self, number: int) -> str:
        return f"dataset={self.dataset!r}: image {number} of the {self.split} split"

    def _bytes(self, row: Any) -> bytes:
        if isinstance(row, bytes):
            return row
        if row is not None and row["bytes"] is not None:
            return bytes(row["bytes"])
        if row is None or row["path"] is None:
            raise ValueError("there is none")
        if not self.paths:
            raise ValueError("the table has its path only, not its bytes; store the bytes")
        return _file(Path(row["path"]))

    def _one(self, function: Callable[[bytes], T], number: int, row: Any) -> T:
        from PIL import Image, UnidentifiedImageError

        file = row.get("path") if isinstance(row, dict) else None
        which = f"{self.named(number)}{f' ({file})' if file else ''}"
        try:
            data = self._bytes(row)
            if isinstance(row, dict) and row.get("sha256") not in (None, hashlib.sha256(data).digest()):
                raise _ChangedError
            return function(data)
        except _ChangedError as error:
            raise DataError(
                f"{which} cannot be decoded: its file has changed since the data set was read; run it again"
            ) from error
        except (OSError, SyntaxError, TypeError, KeyError, ValueError, Image.DecompressionBombError) as error:
            why = "no known image format" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(f"{which} cannot be decoded ({why}); fix or remove it") from error


@dataclass(frozen=True)
class Decoder:
    """A decoder from the bytes of an image file to pixels, uint8 (H, W, C).

    Args:
        image_size: side in pixels to resize to, bilinearly and smoothed; None keeps the images.
        resize: "stretch" the whole image to a square, or "centre_crop": cut a square of 0.875 of the shorter side out
            of the middle.
        channels: 1 or 3; None: 1 for a grey image and 3 for others.
    """

    image_size: int | None = None
    resize: Resize = "stretch"
    channels: int | None = None

    def __call__(self, data: bytes) -> Array:
        """Decode. Raises Pillow's errors, and ValueError for pixels of unknown range."""
        from PIL import Image

        encoded = Image.open(io.BytesIO(data), formats=FORMATS)
        _raise_if_several(encoded)
        channels = self.channels or _channels(encoded.mode)
        whole = _upright(encoded, _eight_bits(encoded))
        image = _on_white(whole).convert("L" if channels == 1 else "RGB")
        _raise_if_blank(whole, image)
        pixels = np.asarray(self._to_size(image))
        return pixels.reshape(*pixels.shape[:2], channels)

    def resized(self, pixels: Array) -> Array:
        """Resize decoded pixels, uint8 (H, W, C) with 1 or 3 channels, to the decoder's size."""
        from PIL import Image

        image = self._to_size(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
        return np.asarray(image).reshape(image.height, image.width, pixels.shape[-1])

    def _to_size(self, image: Any) -> Any:
        from PIL import Image

        if self.image_size is None:
            return image
        box = _middle(image.size) if self.resize == "centre_crop" else None
        size = (self.image_size, self.image_size)
        return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)


def channels_of(data: bytes) -> int:
    """The number of channels: 1 for a grey image, else 3, by the file's header. Raises Pillow's errors."""
    from PIL import Image

    return _channels(Image.open(io.BytesIO(data), formats=FORMATS).mode)


def _file(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError, also for a device or a pipe, which may never end."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    return path.read_bytes()


def in_threads(function: Callable[[U], T], many: Iterable[U]) -> Iterator[T]:
    """Apply a function to each item, in order, with as many threads as torch has."""
    waiting = iter(many)
    while some := list(islice(waiting, ROWS)):
        yield from _threads(torch.get_num_threads()).map(function, some)


def decode_all(stored: Stored, decoder: Decoder) -> Tensor:
    """Decode all images of a split, uint8 (N, C, H, W); if the decoder's channels are None, 3 if any image has 3.

    Raises DataError for an image that cannot be decoded, or whose size differs from that of the first.
    """
    if not len(stored):
        raise DataError(f"dataset={stored.dataset!r}: the {stored.split} split has no images")
    together: Array | None = None
    for number, pixels in enumerate(stored.each(decoder)):
        if together is None:
            together = np.empty((len(stored), *pixels.shape), np.uint8)
        if pixels.shape[:2] != together.shape[1:3]:
            sizes = ["×".join(map(str, shape)) for shape in (pixels.shape[:2], together.shape[1:3])]
            raise DataError(f"{stored.named(number)} has {sizes[0]} pixels, earlier ones {sizes[1]}; set image_size")
        if pixels.shape[2] > together.shape[3]:
            together = np.repeat(together, pixels.shape[2], axis=3)
        together[number] = pixels  # copy the channel of a grey image to all three
    assert together is not None
    return torch.from_numpy(together).permute(0, 3, 1, 2).contiguous()


class Encoded:
    """Images that are decoded on demand; shape, length and indexing are those of a tensor of them."""

    def __init__(self, stored: Stored, decoder: Decoder, numbers: Tensor | None = None) -> None:
        assert decoder.channels is not None, "or images would differ in it"
        assert decoder.image_size is not None, "or images would differ in it"
        self.stored, self.decoder = stored, decoder
        self.numbers = torch.arange(len(stored)) if numbers is None else numbers
        self.shape = torch.Size((len(self.numbers), decoder.channels, decoder.image_size, decoder.image_size))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, chosen: Tensor | slice) -> Encoded:
        return Encoded(self.stored, self.decoder, self.numbers[chosen])

    def decode(self) -> Tensor:
        """Decode to pixels, uint8 (N, H, W, C). Raises DataError for an image that cannot be decoded."""
        return torch.from_numpy(np.stack(list(self.stored.each(self.decoder, self.numbers.tolist()))))


Pixels = Tensor | Encoded


def in_memory(pixels: Pixels) -> Tensor:
    """The tensor of images in memory. Raises DataError if they stay encoded."""
    if isinstance(pixels, Tensor):
        return pixels
    raise DataError(
        f"dataset={pixels.stored.dataset!r}: its images are decoded on demand, but here they must be in "
        "memory; raise $SPECTRUM_IMAGES_GB, or set a smaller image_size"
    )


def in_turn(pixels: Pixels, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the images of each part, given by indices: uint8 (n, H, W, C). One part is decoded ahead."""
    if isinstance(pixels, Tensor):
        images_nhwc = pixels.permute(0, 2, 3, 1)
        yield from (images_nhwc.index_select(0, part) for part in parts)
        return
    with ThreadPoolExecutor(1, "spectrum-ahead") as ahead:
        waiting = None
        for part in parts:
            following = ahead.submit(pixels[part].decode)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _middle(size: tuple[int, int]) -> tuple[float, float, float, float]:
    side = CENTRE * min(size)
    left, top = ((length - side) / 2 for length in size)
    return left, top, left + side, top + side


def _channels(mode: str) -> int:
    return 1 if mode in ("1", "L", "LA", "La", "I") or mode.startswith("I;16") else 3


def _raise_if_several(image: Any) -> None:
    if image.format in MANY and getattr(image, "is_animated", False):
        raise ValueError(f"it has {image.n_frames} frames; store one image per file")


def _eight_bits(image: Any) -> Any:
    """Convert to 8 bits per channel. Raises ValueError if the range of values is unknown or hardly used."""
    signed = image.format == "TIFF" and SIGNED in image.tag_v2.get(SAMPLE_FORMAT, ())
    most = None if signed else _most(image)
    if most == 255:
        return image
    if image.mode == "F" or most is None:
        bits = "floating-point numbers" if image.mode == "F" else "signed integers" if signed else "32-bit integers"
        raise ValueError(f"its pixels are {bits} of no known range (mode {image.mode}); store them with 8 or 16 bits")
    is_grey = image.mode == "I" or image.mode.startswith("I;16")
    return _grey_in_eight_bits(image, most) if is_grey else _colours_in_eight_bits(image, most)


def _colours_in_eight_bits(image: Any, most: int) -> Any:
    """Check colours of 16 bits per channel, of which Pillow keeps the upper byte."""
    image.load()
    if "transparency" in image.info:
        raise ValueError(
            "it marks one colour of 16 bits as transparent, which 8 bits do not tell from others; store it with 8 "
            "bits, or with an alpha channel"
        )
    _raise_if_narrow(_visible_span(image) * 257, most)
    return image


def _grey_in_eight_bits(image: Any, most: int) -> Any:
    """Convert grey values from 0 to `most` to 8 bits."""
    from PIL import Image

    values = np.asarray(image)
    if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO:
        values = most - values  # Pillow does this for 8 bits only
    transparent = image.info.get("transparency")
    opaque = values[values != transparent] if isinstance(transparent, int) else values
    if opaque.size and opaque.min() != opaque.max():
        _raise_if_narrow(int(opaque.max()) - int(opaque.min()), most)
    seen = (values / (most / 255)).round().clip(0, 255).astype(np.uint8)
    if isinstance(transparent, int):
        seen[values == transparent] = 255  # white, like all transparent pixels
    return Image.fromarray(seen)


def _visible_span(image: Any) -> int:
    """Range of the 8-bit values, without alpha, over visible pixels; over all pixels if none is visible."""
    values = np.asarray(image).reshape(image.height * image.width, -1).astype(int)
    if image.getbands()[-1] in ("A", "a"):
        seen = values[:, -1] > 0
        values = values[seen] if seen.any() else values
    return int(np.ptp(values[:, :3], axis=0).max())


def _most(image: Any) -> int | None:
    """The value of white in the file; None if the file does not define it."""
    if image.mode == "F":
        return None
    deep = any(";16" in str(part) for tile in image.tile for part in tile[3:])
    if image.format == "PPM" and image.tile and isinstance(image.tile[0][3], tuple):
        deep = image.tile[0][3][1] > 255
    if image.mode == "I":
        return 65_535 if image.format in ("PNG", "PPM") else None
    if image.mode.startswith("I;16"):
        (bits, *_) = image.tag_v2.get(258, (16,)) if image.format == "TIFF" else (16,)
        return int(2**bits - 1)
    return 65_535 if deep else 255


def _raise_if_narrow(span: int, most: int) -> None:
    if span < LEAST_SPAN * most:
        raise ValueError(
            f"its numbers, of 0 to {most:,}, span less than a sixteenth of that, and would keep 16 levels or less; "
            "store them with 8 bits, or scaled to the whole range"
        )


def _upright(encoded: Any, image: Any) -> Any:
    """Apply the EXIF orientation of the file."""
    encoded.load()  # after loading, a TIFF image is upright already, and so is its tag
    try:
        orientation = encoded.getexif().get(0x0112)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, OSError, struct.error):
        return image  # ignore EXIF that cannot be read
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _on_white(image: Any) -> Any:
    """Put transparent pixels on a white background."""
    if not _is_transparent(image):
        return image
    from PIL import Image

    drawn = image.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    white.alpha_composite(drawn)
    return white.convert("RGB")


def _is_transparent(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _raise_if_blank(before: Any, after: Any) -> None:
    """Raise ValueError if all pixels became equal by the conversion."""
    if before is after or not _is_constant(after):
        return
    transparent = _is_transparent(before)
    seen = before.convert("RGBA") if transparent or before.mode == "P" else before
    if not _is_constant(seen):
        how = "on a white background" if transparent else f"from mode {before.mode} to {after.mode}"
        raise ValueError(f"all its pixels become equal {how}, though they differ in the file; store it as 8-bit RGB")


def _is_constant(image: Any) -> bool:
    return all(low == high for low, high in _extrema(image))


def _extrema(image: Any) -> list[tuple[int, int]]:
    """Least and largest value of each channel."""
    found = image.getextrema()
    return [found] if isinstance(found[0], int) else list(found)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "spectrum-decode")
