"""Encoded images to uint8 pixels, by threads: all at once into memory, or part by part as they are asked for.

    Stored(…)  →  decode_all(stored, decoder)  →  a tensor, uint8 (N, C, H, W)
               →  Encoded(stored, decoder, …)  →  looks like such a tensor, and keeps the files' bytes where they are
    in_turn(either, parts)  →  pixels of one part after the other, the next decoded while one is in use

Decoding and resizing leave Python's lock, so that threads use all cores, and nothing is sent between processes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

Resize = Literal["stretch", "centre_crop"]
Array = np.ndarray[Any, np.dtype[np.uint8]]
T = TypeVar("T")

ROWS = 512  # that are read from a table at once
# Pillow knows more, and draws some of them, such as EPS, by starting a program.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
CENTRE = 0.875  # of an image's shorter side is what a centre crop keeps: 299 of 342 pixels, 224 of 256


class DataError(ValueError):
    """Images that cannot be had: what is missing or broken, and what would work."""


@dataclass(frozen=True)
class Stored:
    """One split of a data set as it is stored."""

    dataset: str
    split: str
    table: Any  # datasets.Dataset, memory-mapped
    column: str  # of encoded images

    def __len__(self) -> int:
        return len(self.table)

    def each(self, function: Callable[[bytes], T], numbers: Sequence[int] | None = None) -> Iterator[T]:
        """What the function makes of each image's bytes, in order. Raises DataError that names the image it fails at.

        Args:
            function: called in threads, as many as torch has.
            numbers: of the images; by default all.
        """
        numbers = range(len(self)) if numbers is None else numbers
        for start in range(0, len(numbers), ROWS):
            some = numbers[start : start + ROWS]
            rows = self.table[some][self.column]
            yield from _threads(torch.get_num_threads()).map(partial(self._one, function), some, rows)

    def named(self, number: int) -> str:
        return f"dataset={self.dataset!r}: image {number} of the {self.split} split"

    def _one(self, function: Callable[[bytes], T], number: int, row: Any) -> T:
        from PIL import Image, UnidentifiedImageError

        try:
            return function(row["bytes"] if row["bytes"] is not None else _file(Path(row["path"])))
        except (OSError, SyntaxError, TypeError, KeyError, ValueError, Image.DecompressionBombError) as error:
            file = row.get("path") if isinstance(row, dict) else None
            why = "no known image format" if isinstance(error, UnidentifiedImageError) else error
            which = f"{self.named(number)}{f' ({file})' if file else ''}"
            raise DataError(f"{which} cannot be decoded ({why}); mend or remove it") from error


@dataclass(frozen=True)
class Decoder:
    """The bytes of an image file to pixels, uint8 (H, W, C).

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
        """Raises what Pillow raises, and ValueError for pixels that have no known range."""
        from PIL import Image

        encoded = Image.open(io.BytesIO(data), formats=FORMATS)
        channels = self.channels or _channels(encoded.mode)
        image = _eight_bits(encoded).convert("L" if channels == 1 else "RGB")
        if self.image_size is not None:
            box = _middle(image.size) if self.resize == "centre_crop" else None
            size = (self.image_size, self.image_size)
            image = image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
        pixels = np.asarray(image)
        return pixels.reshape(*pixels.shape[:2], channels)


def channels_of(data: bytes) -> int:
    """1 for a grey image, 3 for others, by the file's header. Raises what Pillow raises."""
    from PIL import Image

    return _channels(Image.open(io.BytesIO(data), formats=FORMATS).mode)


def _file(path: Path) -> bytes:
    """A file's bytes; of a device or a pipe, whose end may never come, none. Raises OSError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    return path.read_bytes()


def decode_all(stored: Stored, decoder: Decoder) -> Tensor:
    """All images of a split, uint8 (N, C, H, W); with 3 channels if the decoder has no channels and any image has 3.

    Raises DataError for an image that cannot be decoded, and for one of another size than the first.
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
        together[number] = pixels  # of a grey image, the one channel to all three
    assert together is not None
    return torch.from_numpy(together).permute(0, 3, 1, 2).contiguous()


class Encoded:
    """Images that are decoded as they are asked for; in shape, length and choice of parts like a tensor of them."""

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
        """The pixels, uint8 (N, H, W, C). Raises DataError for an image that cannot be decoded."""
        return torch.from_numpy(np.stack(list(self.stored.each(self.decoder, self.numbers.tolist()))))


Pixels = Tensor | Encoded


def in_memory(pixels: Pixels) -> Tensor:
    """The tensor of images that are in memory. Raises DataError where they stay encoded."""
    if isinstance(pixels, Tensor):
        return pixels
    raise DataError(
        f"dataset={pixels.stored.dataset!r}: its images are decoded as they are asked for, and here they must be in "
        "memory; raise $SPECTRUM_IMAGES_GB, or set a smaller image_size"
    )


def in_turn(pixels: Pixels, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images of each part, whose numbers it has: uint8 (n, H, W, C). One part is decoded ahead."""
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
    return 1 if mode in ("1", "L", "I") or mode.startswith("I;16") else 3


def _eight_bits(image: Any) -> Any:
    """The image, scaled to 8 bits if it has 16 (where Pillow would cut off). Raises ValueError for numbers beyond."""
    from PIL import Image

    if image.mode != "F" and image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65_535:
        raise ValueError(f"pixels of mode {image.mode} have no known range; store them with 8 or 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "spectrum-decode")
