"""Results for other programs: rows for a spreadsheet or a notebook, a study's tables for a paper or a page.

ROW_FORMATS      a file ending → a function that writes rows, such as one a training run
TABLE_FORMATS    a file ending → a function from a `Table` to its text

`points_table` is the study's table, a line a point; `contrasts_table` what its contrasts show, a line each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from spectrum.analysis.sentences import contrasts_as_text
from spectrum.analysis.summary import as_text, summary_table
from spectrum.analysis.table import budget_name, studies_of

TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
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
MARKDOWN = re.compile(r"[\\`|*<\[$~]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is plain text


@dataclass(frozen=True)
class Table:
    """Cells as text, and what a reader must know of them."""

    titles: list[str]
    rows: list[list[str]]
    caption: str
    label: str


def points_table(results: pd.DataFrame) -> Table:
    """A study's table, a line a point: counts, and accuracy with its interval.

    Args:
        results: rows of one study, from `load_results`.

    Raises ValueError where no point has an accuracy yet.
    """
    table = summary_table(results)
    if table.empty:
        raise ValueError(f"{_study(results)}: no point has an accuracy yet; nothing to tabulate")
    titles, rows = as_text(table)
    return Table(titles, rows, _caption(results, table), f"tab:{_label(_study(results))}")


def contrasts_table(judged: pd.DataFrame, results: pd.DataFrame) -> Table:
    """What a study's contrasts show, a line each: difference with its interval, p-values, verdict.

    Args:
        judged: from `stats.contrasts`.
        results: the rows that they were judged by.

    Raises ValueError for no contrast.
    """
    if judged.empty:
        raise ValueError(f"{_study(results)}: has no contrast; nothing to tabulate")
    titles, rows = contrasts_as_text(judged)
    data = ", ".join(dict.fromkeys(results["dataset"]))
    caption = (
        f"{studies_of(results)}: {data}, differences in points of accuracy, paired by seed, with 95 % t-intervals of "
        f"each by itself; p-values adjusted by Holm's method over all {len(judged)} contrasts."
    )
    return Table(titles, rows, caption, f"tab:{_label(_study(results))}-contrasts")


def as_latex(table: Table) -> str:
    r"""A LaTeX table that needs \usepackage{booktabs}. Its label is tab:STUDY, with "-" for what one may not have."""
    return "\n".join(
        [
            r"% in the preamble: \usepackage{booktabs}",
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
    return f"{markdown_rows(table)}\n{_markdown(table.caption)}\n"


def markdown_rows(table: Table) -> str:
    """The lines of a GitHub Markdown table alone."""
    heading, *body = [[_markdown(cell) for cell in row] for row in (table.titles, *table.rows)]
    rule = ["---", *["---:"] * (len(table.titles) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *body))


def write_csv(results: pd.DataFrame, path: Path) -> None:
    """Write rows as CSV in which no cell is a formula."""
    results.map(inert).rename(columns=inert).to_csv(path, index=False, lineterminator="\r\n")  # or \r is not quoted


def write_parquet(results: pd.DataFrame, path: Path) -> None:
    """Write rows as Parquet; a column that has numbers and text, such as `segments`, as text.

    So is one of lists with words in some of them: `stage_segments` of 1, 8 and "per_channel" is "1 8 per_channel".
    """
    mixed = [name for name in results if results[name].map(type).nunique() > 1 and results[name].map(_has_text).any()]
    texts = {str(name): results[name].map(_as_text).astype("string") for name in mixed}
    results.assign(**texts).to_parquet(path, index=False)


def _has_text(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, tuple | list) and any(isinstance(one, str) for one in value))


def _as_text(value: object) -> str | None:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return None if value is None or value != value else str(value)


def write_json(results: pd.DataFrame, path: Path) -> None:
    """Write rows as JSON, one a line."""
    results.to_json(path, orient="records", lines=True)


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
    """What a reader must know to judge the numbers: study, data set, runs a point, budget."""
    least, most = table["n"].min(), table["n"].max()
    runs = f"{least}" if least == most else f"{least} to {most}"
    data = ", ".join(dict.fromkeys(results["dataset"]))
    budgets = ", ".join(dict.fromkeys(map(budget_name, results["match"])))
    return f"{studies_of(results)}: {data}, n = {runs} {'run' if most == 1 else 'runs'} a point, budget: {budgets}."


def _tex_row(cells: list[str]) -> str:
    return rf"{' & '.join(map(_tex, cells))} \\"


def _tex(text: str) -> str:
    """Text on one line that LaTeX prints as it stands: a sign before a number is a minus, two hyphens are no dash."""
    escaped = " ".join(text.split()).translate(TEX)
    return re.sub(r"-(?=-)", "-{}", re.sub(r"^-(?=\d)", "$-$", escaped))


def _markdown(text: str) -> str:
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
