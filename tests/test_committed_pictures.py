"""Committed pictures show today's rows, drawn by today's code."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.test_readme import script

ROOT = Path(__file__).parents[1]
PICTURES = {picture.path: picture for picture in script("pictures").pictures()}
ANEW = "draw it anew: python results/pictures.py"


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The module of committed pictures, for files of a test's own."""
    module = script("pages.drawn")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def line(values, **text):
    figure = Figure()
    figure.add_subplot().plot(range(len(values)), values)
    figure.suptitle(text.get("title", ""))
    return figure


@pytest.mark.parametrize("path", PICTURES)
def test_a_picture_was_drawn_from_the_rows_of_today(path):
    assert PICTURES[path].said()["Rows"] == PICTURES[path].rows, f"{path} is older than its rows; {ANEW} {path}"


@pytest.mark.medium
@pytest.mark.parametrize("path", PICTURES)
def test_a_picture_shows_what_the_code_of_today_draws(path):
    shown = script("pages.drawn").content(PICTURES[path].draw())
    assert PICTURES[path].said()["Drawn"] == shown, f"{path} is older than its code; {ANEW} {path}"


def test_pictures_are_kept_only_where_a_page_shows_them():
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    kept = {path for path in listed.stdout.splitlines() if path.endswith((".png", ".svg", "report.html"))}
    pages = [ROOT / "README.md", *ROOT.glob("results/*.md"), *ROOT.glob("results/*/README.md")]
    shown = {
        str((page.parent / path).resolve().relative_to(ROOT))
        for page in pages
        for path in re.findall(r'[\w/]+\.png(?=[)"])', page.read_text())
    }
    assert kept == set(PICTURES) == shown


def test_a_changed_row_is_noticed(drawn, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("accuracy\n0.5\n0.6\n")
    picture = drawn.Picture("a.png", ("rows.csv",), lambda: line(pd.read_csv(rows)["accuracy"]))
    assert picture.said() == {}
    picture.write()
    assert picture.said() == {"Rows": picture.rows, "Drawn": drawn.content(picture.draw())}
    rows.write_text("accuracy\n0.5\n0.7\n")
    said = picture.said()
    assert said["Rows"] != picture.rows
    assert said["Drawn"] != drawn.content(picture.draw())


def test_what_is_drawn_otherwise_is_noticed_and_rounding_is_not(drawn):
    before = drawn.content(line([1.0, 2.0], title="a finding"))
    assert before == drawn.content(line([1.0, 2.0 + 1e-12], title="a finding"))
    others = [line([1.0, 2.1], title="a finding"), line([1.0, 2.0], title="another"), line([1.0], title="a finding")]
    recoloured = line([1.0, 2.0], title="a finding")
    recoloured.axes[0].lines[0].set_color("red")
    assert before not in [drawn.content(other) for other in (*others, recoloured)]
