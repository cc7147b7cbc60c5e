"""Exported files can be read by the programs they are for, whatever the names of a study and its values."""

import csv
import json
import math
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spectrum import stats
from spectrum.analysis.export import (
    ROW_FORMATS,
    TABLE_FORMATS,
    Table,
    as_latex,
    as_markdown,
    contrasts_table,
    inert,
    markdown_rows,
    runs_table,
    write_csv,
    write_parquet,
)
from spectrum.analysis.report import write_report
from spectrum.analysis.summary import as_text, summary_table
from spectrum.cli import main
from spectrum.design.study_file import parse_study
from spectrum.results import load_results
from spectrum.study.driver import _row
from spectrum.study.planning import plan_study
from spectrum.study.store import Store
from tests.analysis.test_plots import results
from tests.plans import plan_of

HOSTILE = r"a_b%&|$x$ \input{f} ^~#--é"
# characters that are commands of LaTeX, or that it prints as other glyphs
SPECIAL = re.compile(r"(?<!\\)(?:\\\\)*[%&#_^~<>|]")


def latex(table):
    return as_latex(runs_table(table))


def markdown(table):
    return markdown_rows(runs_table(table))


def judged(table, name="ReLU against none"):
    sides = [{"activation": "relu"}, {"activation": "none"}]
    slope = {"name": "slope", "between": sides, "across": "segments", "margin": None}
    return stats.contrasts(table, [{"name": name, "between": sides, "margin": 0.01}, slope])


def hostile(**columns):
    return results(activation=["none", HOSTILE]).assign(study=HOSTILE, dataset=HOSTILE, **columns)


def environment(text, name):
    """Text between a \\begin and its \\end."""
    return re.search(rf"\\begin{{{name}}}(.*?)\\end{{{name}}}", text, re.DOTALL)[1]


def latex_cells(text):
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL)[1].replace("\\midrule\n", "")
    return [re.split(r" (?<!\\)& ", line.removesuffix(" \\\\")) for line in body.splitlines()]


def markdown_cells(text):
    """Cells by GitHub's rule: a pipe separates cells unless a backslash precedes it."""
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
    assert r"\caption{made-up: digits, n = 2 runs per configuration, budget: parameter-matched.}" in text
    assert r"\label{tab:made-up}" in text
    assert r"1 & 90.25 $\pm$ 3.18 & 2 & 1,000 & 100,000 & $-$0.12\% & 2.0 \\" in text
    assert r"accuracy, \% $\pm$ 95\% CI" in text
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
    text = as_markdown(runs_table(results().assign(study_hash="0123456789abcdef")))
    assert text.splitlines()[-1] == "made-up 01234567: digits, n = 2 runs per configuration, budget: width-matched."
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
    with pytest.raises(ValueError, match="made-up: no run has an accuracy yet"):
        export(runs_table(results().assign(status="failed", test_accuracy=None, val_accuracy=None)))


FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")', "=1\n,=2"]
HIDDEN = ['",=1', "x\r=1", "x\r\n=1", "x\n=1"]  # formats that keep neither a comma nor the end of a line in a cell


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
    """Two activations that differ by 1 pp in the mean, with a spread between seeds."""
    table = results(activation=["none", "relu"], seed=[0, 1, 2])
    table["test_accuracy"] += (table["activation"] == "relu") * (0.01 + 0.002 * (table["seed"] - 1))
    return table


def test_a_table_of_contrasts_has_their_numbers():
    table = compared()
    cells = markdown_cells(markdown_rows(contrasts_table(judged(table), table)))
    first, slope = [[cell.strip() for cell in line] for line in cells[2:]]
    mean, low, high = stats.t_interval([0.8, 1.0, 1.2])
    assert first[:4] == [
        "ReLU − no activation, averaged over 4 numbers of segments",
        "3",
        f"+{mean:.2f}",
        f"{low:.2f} to {high:.2f}",
    ]
    assert first[5:] == ["±1.00", f"{judged(table)['p_equivalent'][0]:.3f}", "ReLU better"]
    assert slope[0] == "ReLU − no activation, per doubling of the segments"
    assert slope[2:] == ["0.00", "", "", "", "", "not known"]  # equal differences have no spread


def test_a_table_of_contrasts_says_what_a_reader_must_know():
    text = as_latex(contrasts_table(judged(compared(), HOSTILE), compared()))
    assert "Holm's method over all 2 comparisons" in text
    assert r"\label{tab:made-up-contrasts}" in text
    assert balanced(text)
    assert all(not SPECIAL.search(cell) for line in latex_cells(text) for cell in line)


def test_no_contrast_is_no_table():
    with pytest.raises(ValueError, match="made-up: has no comparison"):
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


# Every number comes back

SCALARS = {
    "bool": st.booleans(),
    "small int": st.integers(-(2**63), 2**63 - 1),
    "int": st.integers(-(2**70), 2**70),
    "float": st.floats(allow_nan=False),
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(lambda said: inert(said) == said),
}
LISTS = {
    "ints": st.lists(st.integers(1, 2**60), max_size=4).map(tuple),
    "numbers": st.lists(st.integers(-(2**70), 2**70) | st.floats(allow_nan=False), max_size=4),
    "words": st.lists(st.integers(1, 9) | st.just("per_channel"), max_size=4).map(tuple),
    "records": st.lists(st.dictionaries(st.sampled_from("ab"), st.integers() | st.booleans()), max_size=2),
}
VALUES = {
    **SCALARS,
    **LISTS,
    "record": st.dictionaries(
        st.sampled_from("abc"), st.none() | st.floats(allow_nan=False) | st.integers() | st.text("é=\n", max_size=3)
    ),
    "number or word": st.integers(1, 9) | st.just("per_channel"),
    "list or word": st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple) | st.just("even"),
    "float or int": st.floats(allow_nan=False) | st.integers(-(2**53), 2**53),
}


@st.composite
def tables(draw):
    """Columns of all kinds, as in `load_results`: each of one type, with missing values."""
    count = draw(st.integers(1, 4))
    columns = {
        name: draw(st.lists(values | st.none(), min_size=count, max_size=count)) for name, values in VALUES.items()
    }
    return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in columns.items()})


def same(one, other):
    """Equal to the last bit and in type, except for lists and tuples; missing values equal NaN."""
    if isinstance(one, tuple | list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return type(one) is type(other) and repr(one) == repr(other)


def read_json(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.medium
@given(tables())
@settings(max_examples=60)
def test_json_gives_every_value_back(table):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        ROW_FORMATS[".json"](table, path)
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert len(lines) == len(table)
    for number, line in enumerate(lines):
        assert list(line) == list(table)
        for name in table:
            assert same(table[name][number], line[name]), name


def as_read(cell, value):
    """A cell of CSV, read as the type of the value."""
    if isinstance(value, dict | tuple | list):
        return json.loads(cell)
    if isinstance(value, bool):
        return {"True": True, "False": False}[cell]
    return type(value)(cell)


@given(tables())
@settings(max_examples=60)
def test_csv_gives_every_value_back(table):
    with tempfile.TemporaryDirectory() as folder:
        title, *lines = written(table, Path(folder))
    assert title == list(table)
    for number, line in enumerate(lines):
        for name, cell in zip(table, line, strict=True):
            value = table[name][number]
            assert (cell == "") if value is None else same(value, as_read(cell, value)), name


@given(tables())
@settings(max_examples=30)
def test_parquet_gives_every_value_back(table):
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(table, Path(folder, "rows.parquet"))
        back = pd.read_parquet(Path(folder, "rows.parquet"), dtype_backend="numpy_nullable")
    assert list(back) == list(table)
    for name in table:
        for value, read in zip(table[name], back[name], strict=True):
            if value is None:
                assert read is pd.NA or read is None or read != read
            elif name in ("words", "number or word", "list or word") and isinstance(read, str):
                text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                assert read == text
            elif isinstance(read, float) and isinstance(value, int):  # a column of floats and integers
                assert read == value, name
            elif isinstance(read, str) and not isinstance(value, str):
                assert same(value, json.loads(read)), name
            else:
                got = read.tolist() if isinstance(read, np.ndarray | np.generic) else read
                assert same(value, got), name


def test_lists_of_integers_beyond_64_bits_are_json_in_parquet(tmp_path):
    lists = [[2**63], [1, 2**64], None]
    write_parquet(pd.DataFrame({"numbers": pd.Series(lists, dtype=object)}), tmp_path / "rows.parquet")
    *read, missing = pd.read_parquet(tmp_path / "rows.parquet")["numbers"]
    assert [json.loads(text) for text in read] == lists[:2]
    assert missing is pd.NA


def test_integers_beyond_2_53_stay_what_they_are_where_some_are_missing(tmp_path):
    with Store(tmp_path / "s") as store:
        for number, count in enumerate((2**53 + 1, None, 2**62 + 1)):
            store.append({"id": f"{number}", "status": "done", "decay_images": count, "lr": 0.1 + 0.2})
    table = load_results(tmp_path / "s")
    assert table["decay_images"].tolist() == [2**53 + 1, None, 2**62 + 1]
    for ending, write in ROW_FORMATS.items():
        write(table, tmp_path / f"rows{ending}")
    assert [line["decay_images"] for line in read_json(tmp_path / "rows.json")] == [2**53 + 1, None, 2**62 + 1]
    title, *lines = written(table, tmp_path)
    assert [line[title.index("decay_images")] for line in lines] == [str(2**53 + 1), "", str(2**62 + 1)]
    assert {line[title.index("lr")] for line in lines} == {repr(0.1 + 0.2)}
    back = pd.read_parquet(tmp_path / "rows.parquet", dtype_backend="numpy_nullable")["decay_images"]
    assert back.tolist() == [2**53 + 1, pd.NA, 2**62 + 1]


def test_infinity_and_nan_are_numbers_that_readers_know(tmp_path):
    table = pd.DataFrame({"a": [math.inf, -math.inf, math.nan, 1.5], "b": [{"deep": [math.inf, math.nan]}] * 4})
    for ending, write in ROW_FORMATS.items():
        write(table, tmp_path / f"rows{ending}")
    assert [line["a"] for line in read_json(tmp_path / "rows.json")] == [math.inf, -math.inf, None, 1.5]
    assert read_json(tmp_path / "rows.json")[0]["b"] == {"deep": [math.inf, None]}
    for back in (
        pd.read_csv(tmp_path / "rows.csv"),
        pd.read_parquet(tmp_path / "rows.parquet"),
        pd.read_json(tmp_path / "rows.json", lines=True),
    ):
        pd.testing.assert_series_equal(back["a"], table["a"])


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pd.DataFrame([[1, 2]], columns=["a", "a"])
    for ending, write in ROW_FORMATS.items():
        with pytest.raises(ValueError, match="two columns are named 'a'"):
            write(table, tmp_path / f"rows{ending}")
    assert not list(tmp_path.iterdir())


SMALLEST = {"xception": 71, "inception_v3": 75}  # pixels per side


@pytest.mark.medium
@pytest.mark.parametrize("name", ["inception", "inception_v3", "mobilenet_v1", "probe", "resnext", "vgg", "xception"])
def test_every_family_comes_back_from_an_export(name, tmp_path):
    base = {"dataset": "digits", "image_size": SMALLEST.get(name, 32), "model": name}
    axes = {"seed": [0, 1]}
    if name != "inception_v3":  # not a position on the spectrum
        base, axes = base | {"width": 0.25}, {"segments": [1, "per_channel"]}
    check_comes_back(parse_study({"base": base, "axes": axes}, "family"), tmp_path)


SPECIAL_FIELDS = {
    "hidden": {"model": "probe", "hidden": [32, 64]},
    "schedules by stage": {"model": "probe", "stage_segments": [2, "per_channel", 1]},
    "shares": {"model": "probe", "segments": 3, "segment_shares": [2, 1, 1]},
    "form": {"model": "inception", "form": "extreme", "width": 0.25},
    "no 1x1": {"model": "probe", "segments": 2, "pointwise": False},
    "teacher": {"model": "probe", "teacher_segments": 4},
}


@pytest.mark.parametrize("said", SPECIAL_FIELDS.values(), ids=SPECIAL_FIELDS)
def test_every_field_comes_back_from_an_export(said, tmp_path):
    study = parse_study({"base": {"dataset": "digits"} | said, "axes": {"seed": [0, 1]}}, "family")
    check_comes_back(study, tmp_path)


def check_comes_back(study, folder):
    written_rows = []
    with Store(folder / "s") as store:
        for one in plan_study(study):
            row = _row(study, one) | {"status": "done", "test_accuracy": 0.1 + 0.2, "params": 2**60 + 1}
            row["provenance"] = {"lowerings": {"a.b": "native"}, "resumed": [{"step": 3, "before": {}}]}
            store.append(row)
            written_rows.append(json.loads(json.dumps(row)))
    table = load_results(folder / "s")
    for ending, write in ROW_FORMATS.items():
        write(table, folder / f"rows{ending}")
    title, *lines = written(table, folder)
    parquet = pd.read_parquet(folder / "rows.parquet", dtype_backend="numpy_nullable")
    for number, (row, line) in enumerate(zip(written_rows, read_json(folder / "rows.json"), strict=True)):
        for name, value in row.items():
            assert same(value, line[name]), name
            cell = lines[number][title.index(name)]
            assert (cell == "") if value in (None, "") else same(value, as_read(cell, value)), name
            read = parquet[name][number]
            if value is None:
                assert read is pd.NA or read is None
            elif isinstance(value, list) and not isinstance(read, str):
                assert read.tolist() == value
            elif isinstance(value, list) and any(isinstance(one, str) for one in value):
                assert read.split() == list(map(str, value))
            elif isinstance(value, dict | list):
                assert json.loads(read) == value
            else:
                assert read == value or read == str(value), name


# Any name


@given(st.text(max_size=30), st.text(max_size=30))
@example("# a", "*")
@example("1. a", "[x]")
@example("a\0b", "&copy;")
@example("\u202eabc", "``''--,,")
@settings(max_examples=200)
def test_a_table_of_any_names_is_one_that_latex_and_markdown_read(study, cell):
    table = Table(["name", "n"], [[cell, "1"], ["plain", "2"]], f"{study}: a caption", "tab:x")
    text = as_latex(table)
    cells = latex_cells(text)
    assert [len(line) for line in cells] == [2, 2, 2]
    assert balanced(text)
    caption = re.search(r"\\caption{(.*)}", text)[1]
    for said in (caption, cells[1][0]):
        assert not SPECIAL.search(re.sub(r"\\text\w+{}|\\ldots{}|\$\S+?\$", "", said))
        assert all(unicodedata.category(one) not in ("Cc", "Cs", "Zl", "Zp") for one in said)
    assert not re.match(r"[\[*]", cells[1][0])
    lines = as_markdown(table).split("\n")
    assert [len(line) for line in markdown_cells("\n".join(lines[:4]))] == [2] * 4
    assert len(lines) == 7
    assert not re.match(r"[#>+=-]|\d+[.)]", lines[5])


def test_letters_that_latex_may_not_know_are_told():
    table = Table(["name", "n"], [["花", "1"]], "a caption: ±", "tab:x")
    assert "% has 花: compile it by lualatex or xelatex, in a font with them" in as_latex(table).splitlines()
    assert "lualatex" not in as_latex(Table(["é"], [["−1 ± 2"]], "×", "tab:x"))


# A file that cannot be written


@pytest.fixture
def full_disk():
    """No file may grow beyond 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.fixture
def folder(tmp_path):
    """A study's folder with rows, and a plan."""
    study = parse_study({"base": {"dataset": "digits"}, "axes": {"seed": [0, 1]}}, "made-up")
    with Store(tmp_path / "made-up") as store:
        rows = [_row(study, one) | {"status": "done", "test_accuracy": 0.5} for one in plan_study(study)]
        for row in rows:
            store.append(row)
        store.freeze(plan_of({"hash": "a", "points": [], "contrasts": []}))
    (tmp_path / "made-up" / "plan.json").unlink()
    return tmp_path / "made-up"


@pytest.mark.parametrize("ending", [*ROW_FORMATS, *TABLE_FORMATS])
def test_an_export_that_fails_leaves_the_old_file(ending, folder, full_disk, capsys):
    path = folder / f"rows{ending}"
    path.write_text("old")
    assert main(["export", str(folder), "--to", str(path)]) != 0
    assert path.read_text() == "old"
    assert f"{path}: " in capsys.readouterr().err
    assert not list(folder.glob(".rows*"))


def test_a_report_that_cannot_be_written_leaves_the_old_page_and_figures(folder, full_disk):
    (folder / "figures").mkdir()
    kept = [folder / "report.html", folder / "figures" / "spectrum.svg", folder / "figures" / "spectrum.png"]
    for path in kept:
        path.write_text("old")
    with pytest.raises(OSError, match="File too large") as refused:
        write_report(folder, results(), pd.DataFrame(), plan_of({}))
    assert Path(refused.value.filename) in kept
    assert {path.read_text() for path in kept} == {"old"}
    assert len([path for path in folder.rglob("*") if path.is_file()]) == len(kept) + 3
