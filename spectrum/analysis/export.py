"""Results for other programs: rows for a spreadsheet or a notebook, the study's table for a paper or a page.

ROW_FORMATS      a file ending → a function that writes the rows, one a training run
TABLE_FORMATS    a file ending → a function from the rows to the text of the study's table, one line a point
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from spectrum.analysis.summary import as_text, summary_table
from spectrum.analysis.table import budget_name

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


def as_latex(results: pd.DataFrame) -> str:
    r"""The table of a study as a LaTeX table that needs \usepackage{booktabs}.

    Args:
        results: rows of one study, from `load_results`.

    The caption says the data set, the runs a point and the budget; the label is tab:STUDY, with "-" for what a label
    may not have. Raises ValueError where no point has an accuracy yet.
    """
    table = _summary(results)
    titles, rows = as_text(table)
    return "\n".join(
        [
            r"% in the preamble: \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(_caption(results, table))}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9_.-]+', '-', _study(results))}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
            r"\toprule",
            _tex_row(titles),
            r"\midrule",
            *map(_tex_row, rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def as_markdown(results: pd.DataFrame) -> str:
    """The table of a study as a GitHub Markdown table: its first column to the left, the others to the right.

    Args:
        results: rows of one study, from `load_results`.

    Raises ValueError where no point has an accuracy yet.
    """
    titles, rows = as_text(_summary(results))
    heading, *body = [[_markdown(cell) for cell in row] for row in (titles, *rows)]
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *body))


def write_csv(results: pd.DataFrame, path: Path) -> None:
    """Write rows as CSV in which no cell is a formula."""
    results.map(inert).to_csv(path, index=False)


def write_parquet(results: pd.DataFrame, path: Path) -> None:
    """Write rows as Parquet, `segments` as text, since it has numbers and "per_channel"."""
    results.assign(segments=results["segments"].astype("string")).to_parquet(path, index=False)


def write_json(results: pd.DataFrame, path: Path) -> None:
    """Write rows as JSON, one a line."""
    results.to_json(path, orient="records", lines=True)


ROW_FORMATS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".json": write_json,
}
TABLE_FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {".tex": as_latex, ".md": as_markdown}


def inert(value: object) -> object:
    """A spreadsheet would run a cell that starts with one of these; a leading quote makes it text."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def _summary(results: pd.DataFrame) -> pd.DataFrame:
    table = summary_table(results)
    if table.empty:
        raise ValueError(f"{_study(results)}: no point has an accuracy yet; nothing to tabulate")
    return table


def _study(results: pd.DataFrame) -> str:
    return str(results["study"].iloc[0])


def _caption(results: pd.DataFrame, table: pd.DataFrame) -> str:
    """What a reader must know to judge the numbers: study, data set, runs a point, budget."""
    least, most = table["n"].min(), table["n"].max()
    runs = f"{least}" if least == most else f"{least} to {most}"
    data = ", ".join(dict.fromkeys(results["dataset"]))
    budgets = ", ".join(dict.fromkeys(map(budget_name, results["match"])))
    return f"{_study(results)}: {data}, n = {runs} {'run' if most == 1 else 'runs'} a point, budget: {budgets}."


def _tex_row(cells: list[str]) -> str:
    return rf"{' & '.join(map(_tex, cells))} \\"


def _tex(text: str) -> str:
    """Text on one line that LaTeX prints as it stands: a sign before a number is a minus, two hyphens are no dash."""
    escaped = " ".join(text.split()).translate(TEX)
    return re.sub(r"-(?=-)", "-{}", re.sub(r"^-(?=\d)", "$-$", escaped))


def _markdown(text: str) -> str:
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
