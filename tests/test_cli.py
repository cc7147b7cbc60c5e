"""The command as its user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from spectrum.cli import main

STUDY = """
question = "Does it run?"
[base]
dataset = "digits"
train_images = 100
batch_size = 50
epochs = 1
width = 0.25
[axes]
segments = [1, 3, "per_channel"]
seed = [0, 1]
"""


@pytest.fixture
def study(study_folder):
    (study_folder / "tiny.toml").write_text(STUDY)
    return study_folder


def run(*words):
    """Exit status; argument errors leave through SystemExit, as in every command line."""
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


@pytest.mark.slow
def test_the_whole_way_from_a_study_to_its_table(study, capsys):
    assert run("run", "tiny.toml", "--workers", "2") == 0
    first = capsys.readouterr()
    for said in ("segments", "params", "MACs", "accuracy", "seconds", "per channel"):
        assert said in first.out
    folder = study / "results" / "tiny"
    for path in (folder / "figures" / "spectrum.png", folder / "report.html", folder / "results.jsonl"):
        assert str(path.relative_to(study)) in first.out
        assert path.exists()
    assert "6/6" in first.err
    assert "\x1b" not in first.err  # plain lines where there is no terminal

    assert run("run", "tiny.toml") == 0
    assert "6 of 6 points had a result already and were reused" in capsys.readouterr().out

    assert run("status", "tiny.toml") == 0
    assert "6 points · 6 done · 0 diverged · 0 failed · 0 left" in capsys.readouterr().out

    (folder / "report.html").unlink()
    assert run("report", "results/tiny") == 0
    assert (folder / "report.html").exists()

    for name in ("rows.csv", "rows.parquet", "rows.json"):
        assert run("export", "tiny.toml", "--to", name) == 0
    tables = [pd.read_csv("rows.csv"), pd.read_parquet("rows.parquet"), pd.read_json("rows.json", lines=True)]
    assert all(len(table) == 6 and table["test_accuracy"].notna().all() for table in tables)

    # Another base makes other points; the first ones stay.
    assert run("run", "tiny.toml", "--no-residual", "--workers", "2") == 0
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [row["residual"] for row in rows] == [True] * 6 + [False] * 6


@pytest.mark.slow
def test_a_failed_point_makes_the_status_non_zero(study, capsys):
    assert run("run", "tiny.toml", "--workers", "1", "--import", "tests.faulty_models", "--model", "fails") == 1
    assert "6 points failed" in capsys.readouterr().err
    assert run("status", "tiny.toml") == 0
    assert run("status", "results/tiny") == 0
    assert "this model never works" in capsys.readouterr().out


def test_a_plan_lists_points_and_writes_nothing(study, capsys):
    assert run("plan", "tiny.toml") == 0
    said = capsys.readouterr().out
    assert "Does it run?" in said
    assert "6 points" in said
    assert "unmatched" in said
    assert [path.name for path in study.iterdir()] == ["tiny.toml"]


def test_an_override_reaches_the_plan(study, capsys):
    run("plan", "tiny.toml")
    before = capsys.readouterr().out
    assert run("plan", "tiny.toml", "--width", "0.5", "--order", "spatial_first") == 0
    assert capsys.readouterr().out != before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "tiny.toml", "--segments", "4"], "segments: varies in this study"),
        (["run", "tiny.toml", "--epochs", "0"], "epochs"),
        (["run", "tiny.toml", "--lr", "x"], "lr"),
        (["run", "tiny.toml", "--activation", "rellu"], "activation"),
        (["run", "tiny.toml", "--epoch", "2"], "--epoch"),
        (["run", "tiny.toml", "--workers", "0"], "--workers 0: expected at least 1"),
        (["run", "tiny.toml", "--import", "no_such_module"], "--import no_such_module"),
        (["run", "tiny.toml", "--model", "prob"], "did you mean"),
        (["run", "tiny.toml", "--dataset", "no_such_data"], "dataset='no_such_data': unknown; try 'digits'"),
        (["run", "tiny.toml", "--dataset", "./nowhere"], "dataset='./nowhere': no such folder"),
        (["plan", "tiny.toml", "--train-images", "100000"], "train_images=100000: only"),
        (["run", "tini.toml"], 'did you mean "tiny.toml"?'),
        (["run"], "PATH"),
        (["status", "tiny.toml", "--out", "nowhere"], "6 left"),
        (["status", "nowhere"], "neither a study's TOML file nor a folder of results"),
        (["report", "tiny.toml"], "run the study first"),
        (["export", "tiny.toml"], "run the study first"),
        (["fly"], "fly"),
    ],
)
def test_wrong_input_is_named_with_status_2_and_nothing_is_written(study, capsys, words, says):
    status = run(*words)
    said = capsys.readouterr()
    assert says in " ".join((said.out + said.err).split())
    assert status == (0 if "6 left" in says else 2)
    assert [path.name for path in study.iterdir()] == ["tiny.toml"]


def test_help_is_there_for_every_command(capsys):
    assert run("--help") == 0
    said = capsys.readouterr().out
    for command in ("plan", "run", "status", "report", "export"):
        assert command in said
        assert run(command, "--help") == 0
    assert "--epochs" in capsys.readouterr().out


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "spectrum", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.returncode == 0
    assert "plan" in done.stdout


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1"])
def test_cells_that_a_spreadsheet_would_run_become_text(cell):
    from spectrum.cli import _inert

    assert _inert(cell) == "'" + cell
    assert _inert("plain") == "plain"
    assert _inert(-1.5) == -1.5
