"""Committed pictures: what each is drawn from, and whether the file shows it still.

A picture's PNG has two hashes in its metadata: `Rows`, of the files that it is drawn from, and `Drawn`, of the figure's
content. So a test finds a picture that is older than its rows, or than its code, without comparing pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import ArrayLike
from PIL import Image

from spectrum import plots
from spectrum._files import write_whole

ROOT = Path(__file__).parents[2]
DIGITS = 6  # significant digits of a number in the hash, so that rounding errors change nothing


@dataclass(frozen=True)
class Picture:
    """A committed picture.

    Attributes:
        path: its PNG file, from the repository's root.
        reads: the files that it is drawn from, likewise.
        draw: draws it.
    """

    path: str
    reads: tuple[str, ...]
    draw: Callable[[], Figure]

    @property
    def rows(self) -> str:
        """Hash of the files that it is drawn from, as they are today."""
        found = hashlib.sha256()
        for name in self.reads:
            found.update((ROOT / name).read_bytes())
        return found.hexdigest()[:16]

    def said(self) -> dict[str, str]:
        """Hashes in the metadata of the file; empty if there is no file."""
        if not (ROOT / self.path).exists():
            return {}
        with Image.open(ROOT / self.path) as image:
            return {name: str(image.info[name]) for name in ("Rows", "Drawn") if name in image.info}

    def write(self) -> None:
        """Draw it into its file."""
        figure, image = self.draw(), BytesIO()
        said = {"Rows": self.rows, "Drawn": content(figure)}
        with plots.style():
            figure.savefig(image, format="png", metadata={"Software": None} | said, facecolor=figure.get_facecolor())
        write_whole(ROOT / self.path, image.getvalue())


def content(figure: Figure) -> str:
    """Hash of what a figure shows: its size, and the numbers, words and colours of what is drawn."""
    return hashlib.sha256("\n".join(_parts(figure)).encode()).hexdigest()[:16]


def _parts(figure: Figure) -> Iterator[str]:
    yield _numbers(figure.get_size_inches())
    for ax in figure.findobj(Axes):
        assert isinstance(ax, Axes)
        yield from _axes(ax)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text() and text.get_visible():
            yield f"{text.get_text()} {_color(text.get_color())} {text.get_fontsize():g} {text.get_fontweight()}"


def _axes(ax: Axes) -> Iterator[str]:
    """Limits, ticks and artists of one panel."""
    axes: tuple[Axis, ...] = (ax.xaxis, ax.yaxis)
    for axis in axes:
        yield f"{axis.get_scale()} {_numbers(axis.get_view_interval())} {_numbers(axis.get_majorticklocs())}"
    for line in ax.lines:
        yield f"{_numbers(line.get_xydata())} {_color(line.get_color())} {line.get_marker()} {line.get_linestyle()}"
    for collection in ax.collections:
        marks = isinstance(collection, PathCollection)
        yield _numbers(collection.get_offsets()) + _numbers(collection.get_facecolor())
        yield from (_numbers(path.vertices) for path in ([] if marks else collection.get_paths()))
    for patch in ax.patches:
        yield _numbers(patch.get_path().transformed(patch.get_patch_transform()).vertices) + _color(
            patch.get_facecolor()
        )
    for image in ax.images:
        yield _numbers(np.ma.MaskedArray(image.get_array()).filled(np.nan))


def _color(color: object) -> str:
    return mpl.colors.to_hex(color)  # type: ignore[arg-type]


def _numbers(values: ArrayLike) -> str:
    return " ".join(f"{value + 0.0:.{DIGITS}g}" for value in np.ravel(np.asarray(values, dtype=float)).tolist())
