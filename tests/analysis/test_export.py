"""What is exported can be read by what it is for, whatever a study and its values are called."""

import csv
import re
import shutil
import subprocess

import pandas as pd
import pytest

from spectrum import stats
from spectrum.analysis.export import (
    ROW_FORMATS,
    TABLE_FORMATS,
    as_latex,
    as_markdown,
    contrasts_table,
    inert,
    markdown_rows,
    points_table,
    write_csv,
    write_parquet,
)
from spectrum.analysis.summary import as_text, summary_table
from tests.analysis.test_plots import results

HOSTILE = r"a_b%&|$x$ \input{f} ^~#--é"
SPECIAL = re.compile(r"(?<!\\)(?:\\\\)*[%&#_^~<>|]")  # what LaTeX would obey, or print as another glyph


def latex(table):
    return as_latex(points_table(table))


def markdown(table):
    return markdown_rows(points_table(table))


def judged(table, name="ReLU against none"):
    sides = [{"activation": "relu"}, {"activation": "none"}]
    slope = {"name": "slope", "between": sides, "across": "segments", "margin": None}
    return stats.contrasts(table, [{"name": name, "between": sides, "margin": 0.01}, slope])


def hostile(**columns):
    return results(activation=["none", HOSTILE]).assign(study=HOSTILE, dataset=HOSTILE, **columns)


def environment(text, name):
    """What stands between a \\begin and its \\end."""
    return re.search(rf"\\begin{{{name}}}(.*?)\\end{{{name}}}", text, re.DOTALL)[1]


def latex_cells(text):
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL)[1].replace("\\midrule\n", "")
    return [re.split(r" (?<!\\)& ", line.removesuffix(" \\\\")) for line in body.splitlines()]


def markdown_cells(text):
    """Cells by the rule of GitHub: a pipe divides unless there is a backslash before it."""
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]


def balanced(text):
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    return depth == 0


@pytest.mark.parametrize("table", [results(), hostile()], ids=["plain", "hostile"])
def test_latex_has_every_cell_and_nothing_that_breaks_it(table):
    text = latex(table)
    titles, rows = as_text(summary_table(table))
    cells = latex_cells(text)
    assert len(cells) == 1 + len(rows)
    assert {len(line) for line in cells} == {len(titles)}
    assert f"{{l{'r' * (len(titles) - 1)}}}" in text
    assert balanced(text)
    assert text.count("$") % 2 == 0
    caption = re.search(r"\\caption{(.*)}", text)[1]
    for cell in [caption, *(cell for line in cells for cell in line)]:
        assert not SPECIAL.search(cell)
        assert not re.search(r"\\(?!text|pm|times|[%&#_${}])", cell)  # no command but our own
    assert text.splitlines()[0] == r"% in the preamble: \usepackage{booktabs}"
    environment(text, "table")


def test_latex_says_what_a_reader_must_know():
    text = latex(results().assign(match="params", budget_mismatch=-0.0012))
    assert r"\caption{made-up: digits, n = 2 runs a point, budget: equal parameters.}" in text
    assert r"\label{tab:made-up}" in text
    assert r"1 & 2 & 1,000 & 100,000 & $-$0.12 \% & 90.25 $\pm$ 3.18 & 2.0 \\" in text
    assert r"accuracy, \% $\pm$ 95 \% t" in text
    assert r"tiny-{}-epochs-2" in latex(results().assign(study="tiny--epochs-2"))
    assert r"3, no 1$\times$1" in latex(results(pointwise=[True, False]))


def test_a_label_has_nothing_that_a_label_may_not():
    assert r"\label{tab:a_b-x}" in latex(results().assign(study="a_b%&{x"))


@pytest.mark.parametrize("table", [results(), hostile()], ids=["plain", "hostile"])
def test_markdown_has_every_cell(table):
    titles, rows = as_text(summary_table(table))
    cells = markdown_cells(markdown(table))
    assert cells[1] == [" --- ", *[" ---: "] * (len(titles) - 1)]
    shown = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line] for line in cells]
    assert [shown[0], *shown[2:]] == [titles, *rows]


def test_markdown_leaves_plain_values_alone():
    table = results(order=["pointwise_first", "_spatial_first_"])
    assert "| pointwise_first |" in markdown(table)
    assert r"| \_spatial_first\_ |" in markdown(table)


def test_markdown_has_its_caption_below():
    text = as_markdown(points_table(results().assign(study_hash="0123456789abcdef")))
    assert text.splitlines()[-1] == "made-up 01234567: digits, n = 2 runs a point, budget: unmatched."
    assert text.splitlines()[-2] == ""


def test_columns_of_numbers_and_text_are_written_as_text(tmp_path):
    table = results(teacher_segments=[2, "per_channel"])
    write_parquet(table, tmp_path / "rows.parquet")
    back = pd.read_parquet(tmp_path / "rows.parquet")
    assert set(back["teacher_segments"]) == {"2", "per_channel"}
    assert set(back["segments"]) == {"1", "2", "3", "per_channel"}
    assert back["test_accuracy"].tolist() == table["test_accuracy"].tolist()


def test_parquet_has_schedules_and_proportions_as_text(tmp_path):
    table = (
        results()
        .iloc[:2]
        .assign(
            stage_segments=[None, (1, 8, "per_channel")], segment_shares=["even", (4, 2, 1)], widths=[None, (8, 16)]
        )
    )
    write_parquet(table, tmp_path / "rows.parquet")
    back = pd.read_parquet(tmp_path / "rows.parquet")
    assert back["stage_segments"].isna().tolist() == [True, False]
    assert back["stage_segments"].iloc[1] == "1 8 per_channel"
    assert back["segment_shares"].tolist() == ["even", "4 2 1"]
    assert back["widths"].iloc[1].tolist() == [8, 16]


def test_a_cell_is_one_line():
    table = results(activation=["none", "a\nb\r\n\nc"])
    assert "a b c" in markdown(table)
    assert len(markdown(table).splitlines()) == 2 + 8
    assert len(latex_cells(latex(table))) == 1 + 8


@pytest.mark.parametrize("export", TABLE_FORMATS.values(), ids=TABLE_FORMATS)
def test_a_study_without_an_accuracy_has_no_table(export):
    with pytest.raises(ValueError, match="made-up: no point has an accuracy yet"):
        export(points_table(results().assign(status="failed", test_accuracy=None, val_accuracy=None)))


FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")', "=1\n,=2"]
HIDDEN = ['",=1', "x\r=1", "x\r\n=1", "x\n=1"]  # where a comma or a line's end is not kept within the cell


def written(table, folder):
    """The cells of a CSV file, as a spreadsheet reads them."""
    write_csv(table, folder / "rows.csv")
    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def formulas(lines):
    cells = (cell for line in lines for cell in line)
    return [cell for cell in cells if cell.startswith(tuple("=+-@\t\r")) and not re.fullmatch(r"-?[\d.e-]+", cell)]


@pytest.mark.parametrize("cell", FORMULAS + HIDDEN)
def test_cells_that_a_spreadsheet_would_run_become_text(cell, tmp_path):
    shown = "'" + cell if cell in FORMULAS else cell
    assert inert(cell) == shown
    assert inert("plain") == "plain"
    assert inert(-1.5) == -1.5
    named = dict.fromkeys(["study", "dataset", "reason"], cell)
    rows = results(activation=["none", cell]).assign(**named, widths=[[cell]] * 16, lr=-0.5)
    sides = [{"activation": cell}, {"activation": "none"}]
    nothing = [{"activation": "x"}, {"activation": "none"}]
    judged = stats.contrasts(rows, [{"name": cell, "between": between} for between in (sides, nothing)])
    for table in (rows, judged):
        lines = written(table, tmp_path)
        assert [len(line) for line in lines] == [len(table.columns)] * (1 + len(table))
        assert formulas(lines) == []
        assert shown in lines[1]


@pytest.mark.parametrize("title", FORMULAS + HIDDEN)
def test_titles_that_a_spreadsheet_would_run_become_text(title, tmp_path):
    lines = written(results().assign(**{title: 1}), tmp_path)
    assert len({len(line) for line in lines}) == 1
    assert formulas(lines) == []


def compared():
    """Two activations, a point apart in the mean, with a spread between seeds."""
    table = results(activation=["none", "relu"], seed=[0, 1, 2])
    table["test_accuracy"] += (table["activation"] == "relu") * (0.01 + 0.002 * (table["seed"] - 1))
    return table


def test_a_table_of_contrasts_has_their_numbers():
    table = compared()
    cells = markdown_cells(markdown_rows(contrasts_table(judged(table), table)))
    first, slope = [[cell.strip() for cell in line] for line in cells[2:]]
    mean, low, high = stats.t_interval([0.8, 1.0, 1.2])
    assert first[:4] == ["ReLU against none", "3", f"+{mean:.2f}", f"{low:.2f} to {high:.2f}"]
    assert first[5:] == ["±1.00", f"{judged(table)['p_equivalent'][0]:.3f}", "higher"]
    assert slope[0] == "slope (a doubling of the segments)"
    assert slope[2:] == ["0.00", "", "", "", "", "unknown"]  # equal differences tell nothing of a spread


def test_a_table_of_contrasts_says_what_a_reader_must_know():
    text = as_latex(contrasts_table(judged(compared(), HOSTILE), compared()))
    assert "Holm's method over all 2 contrasts" in text
    assert r"\label{tab:made-up-contrasts}" in text
    assert balanced(text)
    assert all(not SPECIAL.search(cell) for line in latex_cells(text) for cell in line)


def test_no_contrast_is_no_table():
    with pytest.raises(ValueError, match="made-up: has no contrast"):
        contrasts_table(judged(compared()).iloc[:0], results())


@pytest.mark.parametrize("ending", ROW_FORMATS)
def test_contrasts_are_written_as_rows_too(ending, tmp_path):
    file = tmp_path / f"contrasts{ending}"
    ROW_FORMATS[ending](judged(compared()), file)
    lines = ending == ".json"
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".json": pd.read_json}[ending]
    back = read(file, lines=True) if lines else read(file)
    assert list(back["name"]) == ["ReLU against none", "slope"]
    assert back["mean"][0] == pytest.approx(0.01)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
@pytest.mark.parametrize("study", [compared(), hostile()], ids=["plain", "hostile"])
def test_latex_compiles(study, tmp_path):
    contrasts = as_latex(contrasts_table(judged(compared(), HOSTILE), study))
    document = [r"\documentclass{article}", r"\usepackage[T1]{fontenc}", r"\usepackage{booktabs}", r"\begin{document}"]
    text = "\n".join([*document, latex(study), contrasts, r"\end{document}"])
    (tmp_path / "paper.tex").write_text(text)
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 0
