"""Results for other programs: rows for a spreadsheet or a notebook, tables of a study for a paper or a page.

ROW_FORMATS      file ending → function that writes rows, such as one per training run
TABLE_FORMATS    file ending → function from a `Table` to its text

`runs_table` is the table of a study, a line per configuration; `contrasts_table` has a line per comparison.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spectrum._files import write_whole
from spectrum.analysis.sentences import contrasts_as_text
from spectrum.analysis.summary import as_text, summary_table
from spectrum.analysis.table import studies_of
from spectrum.analysis.words import setting_words

TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "`": r"\textasciigrave{}",
        "[": "{[}",  # or the line before takes it for an argument
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",  # these three are other glyphs in LaTeX's default encoding
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "—": r"\textemdash{}",
        "–": r"\textendash{}",
        "…": r"\ldots{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "−": "$-$",
        **{character: f"\\{character}" for character in "%_&$#{}"},
    }
)
MARKDOWN = re.compile(r"[\\`|*<\[$~]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is plain
BLOCK = re.compile(r"^(\d{1,9})(?=[.)])|^(?=[#>+=-])")  # what begins a list, a heading or a quotation
UNPRINTED = ("Cc", "Cs", "Cf")  # kinds of characters that break or reorder a line, but for those that join letters
JOINERS = "\u200c\u200d"
LATIN = 0x250  # the first character that pdflatex may not have


@dataclass(frozen=True)
class Table:
    """Cells as text, with titles, caption and label."""

    titles: list[str]
    rows: list[list[str]]
    caption: str
    label: str


def runs_table(results: pd.DataFrame) -> Table:
    """Table of a study, a line per configuration: costs, and accuracy with its 95% CI.

    Args:
        results: rows of one study, from `load_results`.

    Raises ValueError where no run has an accuracy yet.
    """
    table = summary_table(results)
    if table.empty:
        raise ValueError(f"{_study(results)}: no run has an accuracy yet; nothing to tabulate")
    titles, rows = as_text(table)
    return Table(titles, rows, _caption(results, table), f"tab:{_label(_study(results))}")


def contrasts_table(judged: pd.DataFrame, results: pd.DataFrame) -> Table:
    """Table of a study's comparisons, a line each: difference with its 95% CI, p-values, verdict.

    Args:
        judged: from `stats.contrasts`.
        results: the rows that they were judged by.

    Raises ValueError where there is no comparison.
    """
    if judged.empty:
        raise ValueError(f"{_study(results)}: has no comparison; nothing to tabulate")
    titles, rows = contrasts_as_text(judged)
    data = ", ".join(dict.fromkeys(results["dataset"]))
    caption = (
        f"{studies_of(results)}: {data}, differences of accuracy in percentage points (pp), paired by seed, with 95% "
        f"CIs of each by itself; p-values adjusted by Holm's method over all {len(judged)} comparisons."
    )
    return Table(titles, rows, caption, f"tab:{_label(_study(results))}-contrasts")


def as_latex(table: Table) -> str:
    r"""A LaTeX table that needs \usepackage{booktabs}. Its label is tab:STUDY, with "-" for what one may not have."""
    return "\n".join(
        [
            r"% in the preamble: \usepackage{booktabs}",
            *_fonts_needed(table),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.caption)}}}",
            rf"\label{{{table.label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.titles) - 1)}}}",
            r"\toprule",
            _tex_row(table.titles),
            r"\midrule",
            *map(_tex_row, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def as_markdown(table: Table) -> str:
    """A GitHub Markdown table: its first column to the left, the others to the right, and its caption below."""
    caption = BLOCK.sub(r"\1\\", _markdown(table.caption))
    return f"{markdown_rows(table)}\n{caption}\n"


def markdown_rows(table: Table) -> str:
    """The lines of a GitHub Markdown table alone."""
    heading, *body = [[_markdown(cell) for cell in row] for row in (table.titles, *table.rows)]
    rule = ["---", *["---:"] * (len(table.titles) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *body))


def write_csv(results: pd.DataFrame, path: Path) -> None:
    """Write rows as CSV in which no cell is a formula.

    A float has all its digits, a list or a record is JSON, and a missing value is an empty cell.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")  # or \r is not quoted
    columns = _columns(results)
    writer.writerow([inert(name) for name, _ in columns])
    writer.writerows(zip(*([_cell(value) for value in column] for _, column in columns), strict=True))
    write_whole(path, text.getvalue())


def write_json(results: pd.DataFrame, path: Path) -> None:
    """Write rows as JSON, one per line.

    A missing value is null. JSON has no word for infinity: it is written as 1e999, which readers parse as infinity.
    """
    columns = [(_json(name), column) for name, column in _columns(results)]
    rows = (
        "{" + ", ".join(f"{name}: {_json(column[row])}" for name, column in columns) + "}\n"
        for row in range(len(results))
    )
    write_whole(path, "".join(rows))


def write_parquet(results: pd.DataFrame, path: Path) -> None:
    """Write rows as Parquet, whose columns each have one type.

    A column that has numbers and text, such as `segments`, is text. So is one of lists with words in some of them:
    `stage_segments` of 1, 8 and "per_channel" is "1 8 per_channel". Records, such as `provenance`, are JSON.
    """
    names = _names(results)
    rows = results.reset_index(drop=True)
    frame = pd.DataFrame({name: _of_one_type(rows.iloc[:, number]) for number, name in enumerate(names)})
    write_whole(path, frame.to_parquet(None, index=False))


def _names(results: pd.DataFrame) -> list[str]:
    names = [str(name) for name in results.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are named {twice!r}; rename one before the export")
    return names


def _columns(results: pd.DataFrame) -> list[tuple[str, list[object]]]:
    """Names and values as they are: visiting them by itself, pandas would make floats of integers."""
    return [(name, results.iloc[:, number].tolist()) for number, name in enumerate(_names(results))]


def _of_one_type(column: pd.Series) -> pd.Series:
    """A column that Parquet can store: every value as it is, or as text that says it exactly."""
    if column.dtype != object:
        return column
    values: list[Any] = [None if _is_missing(value) else _plain(value) for value in column.tolist()]
    there = [value for value in values if value is not None]
    if not there:
        return column
    dtype = _exact_dtype(there)
    if dtype == "float":
        values = [float("nan") if value is None else float(value) for value in values]
    elif dtype == "string":
        text = _as_text if _have_words(there) else _json
        values = [None if value is None else text(value) for value in values]
    return pd.Series(values, column.index, dtype=dtype)


def _exact_dtype(values: Sequence[Any]) -> str:
    """The type of a column that has these values as they are; "string" where only their texts are exact."""
    kinds = set(map(type, values))
    if kinds == {bool}:
        return "boolean"
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return "Int64"
    if kinds <= {int, float} and all(map(_is_float, values)):
        return "float"
    is_plain = kinds == {str} or (kinds == {list} and _is_of_numbers(values))
    return "object" if is_plain else "string"


def _is_float(value: float) -> bool:
    """Whether a number is the same as a float."""
    try:
        return float(value) == value or value != value
    except OverflowError:
        return False


def _is_of_numbers(lists: Sequence[list[Any]]) -> bool:
    kinds = {type(one) for values in lists for one in values}
    if kinds <= {int}:
        return all(-(2**63) <= one < 2**63 for values in lists for one in values)
    return kinds in ({float}, {bool})


def _have_words(values: Sequence[Any]) -> bool:
    """Whether some are text, or all are lists in which words stand, and nothing that spaces could not separate."""
    kinds = set(map(type, values))
    if kinds != {list}:
        return str in kinds
    return any(type(one) is str for each in values for one in each) and all(map(_is_of_words, values))


def _is_of_words(values: list[Any]) -> bool:
    """Whether they can be told apart with spaces between."""
    return all(type(one) is int or (isinstance(one, str) and one.split() == [one]) for one in values)


def _as_text(value: object) -> str:
    if isinstance(value, list) and _is_of_words(value):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else _json(value) if isinstance(value, list | dict) else str(value)


def _is_missing(value: object) -> bool:
    return any(value is nothing for nothing in (None, pd.NA, pd.NaT)) or (isinstance(value, float) and value != value)


def _plain(value: object) -> object:
    """Values of numpy or pandas as Python's own, and tuples as lists."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _json(value: object) -> str:
    """Strict JSON that says a value exactly; `null` for a missing one."""
    if _is_missing(value):
        return "null"
    value = _plain(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(name)}: {_json(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return json.dumps(value, ensure_ascii=False)


def _cell(value: object) -> object:
    if _is_missing(value):
        return ""
    value = _plain(value)
    return inert(_json(value) if isinstance(value, list | dict) else value)


ROW_FORMATS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".json": write_json,
}
TABLE_FORMATS: dict[str, Callable[[Table], str]] = {".tex": as_latex, ".md": as_markdown}


def inert(value: object) -> object:
    """A spreadsheet would run a cell that starts with one of these; a leading quote makes it text."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return "'" + value
    return value


def _study(results: pd.DataFrame) -> str:
    return str(results["study"].iloc[0])


def _label(name: str) -> str:
    return re.sub("[^A-Za-z0-9_.-]+", "-", name)


def _caption(results: pd.DataFrame, table: pd.DataFrame) -> str:
    """Caption of a table: study, data set, runs per configuration, budget."""
    least, most = table["n"].min(), table["n"].max()
    runs = f"{least}" if least == most else f"{least} to {most}"
    data = ", ".join(dict.fromkeys(results["dataset"]))
    budgets = ", ".join(setting_words("match", match) for match in dict.fromkeys(results["match"]))
    each = f"{runs} {'run' if most == 1 else 'runs'} per configuration"
    return f"{studies_of(results)}: {data}, n = {each}, budget: {budgets}."


def _fonts_needed(table: Table) -> list[str]:
    """A comment where a name has letters that pdflatex does not know."""
    text = "".join([table.caption, *table.titles, *(cell for row in table.rows for cell in row)])
    others = sorted({one for one in _on_one_line(text) if ord(one) >= LATIN and ord(one) not in TEX})
    return [f"% has {' '.join(others[:10])}: compile it by lualatex or xelatex, in a font with them"] if others else []


def _tex_row(cells: list[str]) -> str:
    row = " & ".join(map(_tex, cells))
    return rf"{'{}' if row.startswith('*') else ''}{row} \\"  # \\* is a command


def _tex(text: str) -> str:
    """Text on one line that LaTeX prints as it stands: a sign before a number is a minus, two hyphens are no dash."""
    escaped = _on_one_line(text).translate(TEX)
    return re.sub(r"([-',])(?=\1)", r"\1{}", re.sub(r"^-(?=\d)", "$-$", escaped))


def _markdown(text: str) -> str:
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", _on_one_line(text))


def _on_one_line(text: str) -> str:
    """Text without line ends, and with what is not printed written out, such as \\x00."""
    return "".join(
        repr(one)[1:-1] if unicodedata.category(one) in UNPRINTED and one not in JOINERS else one
        for one in " ".join(text.split())
    )
