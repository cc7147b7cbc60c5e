"""The command as its user meets it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch

from spectrum import RunConfig, load_results
from spectrum.cli import main
from spectrum.cli.arguments import BENCHMARKS, EXAMPLES, What, parse
from spectrum.design.budgets import budget_name

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


@pytest.mark.medium
def test_the_whole_way_from_a_study_to_its_table(study, capsys):
    assert run("run", "tiny.toml", "--workers", "2") == 0
    first = capsys.readouterr()
    for said in ("segments", "params", "MACs", "accuracy", "seconds", "per-channel"):
        assert said in first.out
    folder = study / "results" / "tiny"
    for path in (folder / "figures" / "spectrum.png", folder / "report.html", folder / "results.jsonl"):
        assert str(path.relative_to(study)) in first.out
        assert path.exists()
    assert "next    open the report in a browser" in first.out
    assert "6/6" in first.err
    assert "\x1b" not in first.err  # plain lines where there is no terminal

    assert run("run", "tiny.toml") == 0
    assert "6 of 6 runs had a result already and were reused" in capsys.readouterr().out

    assert run("status", "tiny.toml") == 0
    assert capsys.readouterr().out.splitlines() == [
        "results/tiny: complete. 6 runs; none failed or diverged.",
        "next    spectrum report results/tiny",
    ]

    (folder / "report.html").unlink()
    assert run("report", "results/tiny") == 0
    assert (folder / "report.html").exists()

    for name in ("rows.csv", "rows.parquet", "rows.json"):
        assert run("export", "tiny.toml", "--to", name) == 0
    tables = [pd.read_csv("rows.csv"), pd.read_parquet("rows.parquet"), pd.read_json("rows.json", lines=True)]
    assert all(len(table) == 6 and table["test_accuracy"].notna().all() for table in tables)

    # Another base makes another study, beside the first.
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run("run", "tiny.toml", "--no-residual", "--workers", "2") == 0
    other = folder.with_name("tiny--residual-False")
    rows = [json.loads(line) for line in (other / "results.jsonl").read_text().splitlines()]
    assert [row["residual"] for row in rows] == [False] * 6
    assert "spectrum run tiny.toml --no-residual" in (other / "report.html").read_text()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.medium
def test_status_says_how_to_go_on_in_the_folder_that_it_was_asked_of(study, capsys):
    assert run("run", "tiny.toml", "--workers", "1", "--out", "else where/st") == 0
    path = Path("else where/st/results.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    capsys.readouterr()
    assert run("status", "else where/st") == 0
    assert capsys.readouterr().out.endswith("next    spectrum run tiny.toml --out 'else where/st'\n")


@pytest.mark.medium
def test_a_failed_run_makes_the_status_non_zero(study, capsys):
    assert run("run", "tiny.toml", "--workers", "1", "--import", "tests.faulty_models", "--model", "fails") == 1
    assert "6 runs failed" in capsys.readouterr().err
    assert run("status", "results/tiny--model-fails") == 0
    said = capsys.readouterr().out
    assert said.startswith("results/tiny--model-fails: 0 of 6 runs done; 6 failed.\n")
    assert re.search(r"\n  failed: segments=3 seed=1 \(id [0-9a-f]+\): .*this model never works", said)
    assert said.endswith("next    spectrum run tiny.toml --model fails --import tests.faulty_models\n")
    other = "results/tiny--model-fails: this study with model = fails; see it with: spectrum status results/tiny--m"
    assert run("status", "tiny.toml") == 0
    assert capsys.readouterr().out.startswith(other)
    assert run("report", "tiny.toml") == 2, "it has no folder of its own yet"
    assert capsys.readouterr().out.startswith(other)
    with (study / "results/tiny--model-fails/results.jsonl").open("a") as rows:
        rows.write('{"id": "torn')
    torn = (
        "results/tiny--model-fails/results.jsonl: 1 torn or garbled line is not read; spectrum doctor results/tiny--mo"
    )
    for command in ("status", "report"):
        assert run(command, "results/tiny--model-fails") == 0
        assert capsys.readouterr().err.startswith(torn)


def test_a_plan_lists_runs_and_writes_nothing(study, capsys):
    assert run("plan", "tiny.toml") == 0
    said = capsys.readouterr().out
    assert "Does it run?" in said
    assert re.search(r"\n6 runs \(3 configurations × 2 seeds\): about .+ s on \d+ CPU cores?[.,]", said)
    assert budget_name("none")[1:] in said
    counts = "100 training, 149 validation and 299 test images"
    assert f"\ndata: digits: 10 classes · 8×8 pixels, 1 channel · {counts}\n  test images: a fixed sixth of " in said
    assert said.endswith("\nnext    spectrum run tiny.toml\n")
    assert run("plan", "tiny.toml", "--verbose") == 0
    complete = capsys.readouterr().out
    assert "data: digits: 1,498 training and 299 test images · 10 classes, training/test: 0 148/30, " in complete
    assert "8×8 pixels, 1 channel · test images: a fixed sixth of the images, carved off" in complete
    assert run("plan", "tiny.toml", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 6
    assert run("status", "tiny.toml") == 0
    assert capsys.readouterr().out == "results/tiny: 0 of 6 runs done; 6 left.\nnext    spectrum run tiny.toml\n"
    assert [path.name for path in study.iterdir()] == ["tiny.toml"]


@pytest.mark.medium
def test_a_plan_takes_off_the_runs_that_have_a_result(study, capsys):
    assert run("run", "tiny.toml", "--workers", "1") == 0
    capsys.readouterr()
    assert run("plan", "tiny.toml") == 0
    said = capsys.readouterr().out
    assert "6 runs (3 configurations × 2 seeds). All have a result already.\n" in said
    assert said.endswith("\nnext    spectrum report results/tiny\n")
    rows = study / "results" / "tiny" / "results.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:4]))
    assert run("plan", "tiny.toml") == 0
    said = capsys.readouterr().out
    assert "6 runs (3 configurations × 2 seeds); 2 of 6 are left: about " in said
    assert said.endswith("\nnext    spectrum run tiny.toml\n")
    assert run("plan", "tiny.toml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["left"] == 2


def test_a_plan_says_how_far_a_sweep_may_be_extended(study, capsys):
    (study / "tuned.toml").write_text(TUNED + "extend = 2\n")
    assert run("plan", "tuned.toml") == 0
    assert "6 sweep runs, up to 18 if the grid is extended, then 6 final runs (" in capsys.readouterr().out


def test_a_name_that_a_study_gives_does_not_command_the_terminal(study, capsys):
    hidden = STUDY.replace("Does it run?", "Is it \\u001b[8mhidden?")
    (study / "hidden.toml").write_text(hidden)
    assert run("plan", "hidden.toml") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"Is it \x1b[8mhidden?" in said


@pytest.mark.medium
def test_a_plan_says_the_run_with_its_own_flags(study, capsys):
    assert run("plan", "tiny.toml", "--width", "0.5", "--out", "a folder") == 0
    assert capsys.readouterr().out.endswith("\nnext    spectrum run tiny.toml --width 0.5 --out 'a folder'\n")


def test_help_is_a_command_too(capsys):
    assert run("help", "status") == 0
    asked = capsys.readouterr().out
    assert run("status", "--help") == 0
    assert asked == capsys.readouterr().out


@pytest.mark.medium
def test_a_study_is_its_file_whatever_it_is_called(study, capsys):
    (study / "other name.txt").write_text(STUDY.replace("Does it run?", "Is [segments] better than [/3]?"))
    (study / "old.toml").write_text(STUDY.replace("width = 0.25", "width = 0.5"))
    run("plan", "tiny.toml")
    before = capsys.readouterr().out
    assert run("plan", "other name.txt") == 0
    out = capsys.readouterr().out
    without_seconds = [[line.rsplit(None, 1)[0] for line in said.splitlines()[2:7]] for said in (out, before)]
    assert without_seconds[0] == without_seconds[1]


@pytest.mark.parametrize("flag", [["--segment-width", "4"], ["--segments", "2"]])
def test_one_way_to_say_the_split_replaces_the_other(study, capsys, flag):
    text = STUDY.replace('segments = [1, 3, "per_channel"]\n', "")
    (study / "one.toml").write_text(text)
    (study / "two.toml").write_text(text.replace("width = 0.25", "width = 0.25\nsegment_width = 2"))
    runs = []
    for name in ("one.toml", "two.toml"):
        assert run("plan", name, *flag) == 0
        runs.append([line.rsplit(None, 1)[0] for line in capsys.readouterr().out.splitlines()[2:5]])
    assert runs[0] == runs[1]


def test_files_that_cannot_be_written_or_read_end_in_status_2(study, capsys):
    folder = study / "results" / "tiny"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    for words in (["status", "results/tiny"], ["report", "results/tiny"]):
        assert run(*words) == 2
        assert "plan.json: garbled" in capsys.readouterr().err
    (folder / "plan.json").unlink()
    (folder / "results.jsonl").write_text('{"id": "0", "status": "failed", "segments": 1}\n')
    assert run("export", "results/tiny", "--to", "nowhere/rows.csv") == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.medium
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
        (["run", "tiny.toml", "--lr", "10%"], "spectrum: --lr 10%: '10%' is not a number; as in --lr 0.1"),
        (
            ["run", "tiny.toml", "--activation", "ReLU"],
            "--activation ReLU: 'ReLU' is unknown; did you mean relu? Else try",
        ),
        (["plan", "tiny.toml", "--epochs", "3.5"], "--epochs 3.5: '3.5' is not a whole number; as in --epochs 2"),
        (["plan", "tiny.toml", "--epochs=3.5"], "--epochs 3.5: '3.5' is not a whole number; as in --epochs 2"),
        (["run", "tiny.toml", "--workers", "two"], "--workers two: 'two' is not a whole number; as in --workers 2"),
        (
            ["plan", "tiny.toml", "--widths", "8,16,32"],
            "'8,16,32' is not a whole number; as in --widths 8 16 32, with spaces between",
        ),
        (["plan", "tiny.toml", "--widths", "8", "x"], "--widths x: 'x' is not a whole number; as in --widths 8 16 32"),
        (["plan", "tiny.toml", "--segment_width", "4,8"], "--segment-width 4,8: '4,8' is not a whole number; as in"),
        (["plan", "tiny.toml", "--stage-segments", "1", "all"], "'all' is not a whole number or per_channel; as in"),
        (["plan", "tiny.toml", "--flip", "yes"], "--flip yes: takes no value; write --flip alone, or leave it out"),
        (["compare", "r.csv", "--margin", "0,005"], "--margin 0,005: '0,005' is not a number; as in --margin 0.1"),
        (["run", "tiny.toml", "--epoch", "2"], "--epoch: spectrum run has no such flag; did you mean --epochs?"),
        (["run", "tiny.toml", "--wokers=2"], "--wokers: spectrum run has no such flag; did you mean --workers?"),
        (["export", "tiny.toml", "--contrast"], "did you mean --contrasts?"),
        (["status", "tiny.toml", "--fly"], "--fly: spectrum status has no such flag."),
        (["run", "tiny.toml", "--width", "1e9"], "width: input should be less than"),
        (
            ["run", "tiny.toml", "--device", "mps" if torch.cuda.is_available() else "cuda"],
            "torch cannot use it on this machine",
        ),
        (["plan", "tiny.toml", "--workers", "-3"], "workers: input should be greater than or equal to 1 (got -3)"),
        (["run", "tiny.toml", "--import", "broken_module"], "--import broken_module: SyntaxError"),
        (["run", "tiny.toml", "--workers", "0"], "workers: input should be greater than or equal to 1 (got 0)"),
        (["run", "tiny.toml", "--import", "no_such_module"], "--import no_such_module"),
        (["run", "tiny.toml", "--model", "prob"], "did you mean"),
        (["run", "tiny.toml", "--dataset", "no_such_data"], "dataset='no_such_data': unknown; try 'digits'"),
        (["run", "tiny.toml", "--dataset", "./nowhere"], "dataset='./nowhere': no such folder"),
        (["plan", "tiny.toml", "--train-images", "100000"], "train_images=100000: only"),
        (["run", "tini.toml"], 'did you mean "tiny.toml"?'),
        (["plan", "."], ".: is a folder; name a study's TOML file"),
        (["run", "tiny.toml", "--confirm"], "confirm: this study has no [tune]"),
        (["run"], "PATH"),
        (["status", "tiny.toml", "--out", "nowhere"], "6 left"),
        (["status", "nowhere"], "neither a study's TOML file nor a folder of results"),
        (["report", "tiny.toml"], "run the study first"),
        (["export", "tiny.toml"], "run the study first"),
        (["status", "tiny"], "did you mean tiny.toml?"),
        (["fly"], "fly: no such command. Commands: plan, run, status,"),
        (["Plann", "tiny.toml"], "Plann: no such command; did you mean 'plan'? Commands: plan, run"),
    ],
)
def test_wrong_input_is_named_with_status_2_and_nothing_is_written(study, capsys, tmp_path_factory, words, says):
    modules = tmp_path_factory.mktemp("modules")
    (modules / "broken_module.py").write_text("this is no Python")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(modules)
        status = run(*words)
    said = capsys.readouterr()
    assert says in " ".join((said.out + said.err).split())
    assert status == (0 if "6 left" in says else 2)
    assert [path.name for path in study.iterdir()] == ["tiny.toml"]


def test_help_says_what_every_command_does(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run("--help") == 0
    listed = capsys.readouterr().out
    does = {
        "plan": "List a study's configurations",
        "run": "Train every run",
        "status": "Count a study's runs",
        "doctor": "Check a study's folder",
        "report": "Redraw the figures",
        "export": "Write a study's runs",
        "audit": "Count a network's parameters",
        "bench": "Measure speed",
    }
    for command, words in does.items():
        assert re.search(rf"• {command} +{words}", listed), command
        assert run(command, "--help") == 0
        said = capsys.readouterr().out
        assert said.splitlines()[2].startswith(words), command
        assert ("--epochs" in said) == (command in ("plan", "run"))
        examples = said.partition("Examples:\n")[2].splitlines()
        assert len(examples) == 2
        assert all(example.startswith(f"  spectrum {command} ") for example in examples)


@pytest.mark.parametrize("command", ["plan", "run", "audit"])
def test_a_long_help_comes_in_two_lengths(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(command, "--help") == 0
    short = capsys.readouterr().out
    assert run(command, "--help-all") == 0
    whole = capsys.readouterr().out
    assert f"spectrum {command} --help-all" in short
    assert "--activation" not in short
    assert "--activation" in whole
    flags = [set(re.findall(r"^. (--[a-z][a-z-]+)", text, re.MULTILINE)) for text in (short, whole)]
    assert flags[0] < flags[1]
    if command != "audit":  # flags that override the file, and not the defaults
        assert re.search(r"--activation.*?\(default: the study's value\)", " ".join(whole.split()))
    if command == "run":
        assert flags[0] >= {"--out", "--workers", "--device", "--epochs", "--confirm", "--engine", "--import"}


@pytest.mark.parametrize("words", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_of_the_help_can_be_parsed(words):
    for example in words:
        command, *given = shlex.split(example)
        assert command == "spectrum"
        parse(given)


def test_the_help_of_bench_has_a_line_per_benchmark(capsys):
    assert run("bench", "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(BENCHMARKS) == set(get_args(What))
    for what, measures in BENCHMARKS.items():
        assert f"  {what:7} {measures}" in lines


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


COMPLETE = """
complete -p spectrum
complete_last() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _tyro_spectrum spectrum "${COMP_WORDS[COMP_CWORD]}"
    echo "$*: ${COMPREPLY[*]}"
}
for words in "spectrum exp" "spectrum run x --segm" "spectrum run x --order s" "spectrum run tin" "spectrum -" \
    "spectrum bench o"; do
    complete_last $words
done
complete_last spectrum ""
complete_last spectrum run ""
complete_last spectrum run x --order ""
complete_last spectrum bench ""
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_flags_values_and_files(study, capsys):
    assert run("--tyro-print-completion", "bash") == 0
    (study / "completion.bash").write_text(capsys.readouterr().out)
    said = subprocess.run(["bash", "-c", "source completion.bash" + COMPLETE], capture_output=True, text=True)
    assert said.stderr == ""
    assert said.stdout.splitlines() == [
        "complete -o filenames -F _tyro_spectrum spectrum",
        "spectrum exp: export",
        "spectrum run x --segm: --segments --segment-width --segment-shares",
        "spectrum run x --order s: spatial_first",
        "spectrum run tin: tiny.toml",
        "spectrum -: -h --help",
        "spectrum bench o: op",
        "spectrum : audit bench compare doctor export plan report run segment status",
        "spectrum run : completion.bash tiny.toml",
        "spectrum run x --order : pointwise_first spatial_first",
        "spectrum bench : op train sweep models engine steps",
    ]


def test_zsh_gets_a_script_of_its_own_and_other_shells_none(capsys):
    assert run("--tyro-print-completion", "zsh") == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef spectrum\n")
    assert "'--segments'" in script
    assert "or ['__TYRO_COMPLETE_FILES__']" in script
    assert "= offered(" in script
    assert run("--tyro-print-completion", "ksh") == 2
    assert "expected bash, zsh or fish" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_finds_the_script_in_a_folder_of_the_user(tmp_path, capsys):
    assert run("--tyro-print-completion", "zsh") == 0
    (tmp_path / "_spectrum").write_text(capsys.readouterr().out)
    words = "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; print $_comps[spectrum]; whence -w _spectrum"
    said = subprocess.run(["zsh", "-fc", words], capture_output=True, text=True, cwd=tmp_path)
    assert (said.stdout.split("\n")[:2], said.stderr) == (["_spectrum", "_spectrum: function"], "")


def written(folder, name, accuracies):
    """A folder of results with made-up rows: one a seed, at one segment."""
    folder.mkdir(parents=True)
    run = RunConfig(dataset="digits", segments=1).model_dump(mode="json")
    measured = {"match": "none", "budget_mismatch": None, "params": 1000, "macs": 9000, "realised_segments": [1]}
    rows = [
        {"id": f"{seed:016x}", "study": name, "status": "done", **run, "seed": seed, **measured}
        | {"test_accuracy": accuracy, "val_accuracy": accuracy, "train_seconds": 2.0}
        for seed, accuracy in enumerate(accuracies)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_file_in_no_folder_is_refused(study, capsys):
    written(study / "here", "here", [0.9, 0.92])
    assert run("export", "here", "--to", "nowhere/rows.csv") == 2
    assert capsys.readouterr().err == "spectrum: --to nowhere/rows.csv: no folder nowhere; create it first\n"


def test_the_table_of_a_study_is_exported_for_papers_and_pages(study, capsys):
    written(study / "a_b%&", "a_b%&", [0.9, 0.92])
    assert run("export", "a_b%&", "--to", "table.tex") == 0
    assert run("export", "a_b%&", "--to", "table.md") == 0
    assert "table of 1 configuration written to table.md" in capsys.readouterr().out
    latex, markdown = ((study / name).read_text(encoding="utf-8") for name in ("table.tex", "table.md"))
    assert r"\caption{a\_b\%\&: digits, n = 2 runs per configuration, budget: width-matched.}" in latex
    assert r"1 & 91.00 $\pm$ 12.71 & 2 & 1,000 & 9,000 & 2.0 \\" in latex
    assert markdown.splitlines()[2] == "| 1 | 91.00 ± 12.71 | 2 | 1,000 | 9,000 | 2.0 |"


@pytest.mark.parametrize("to", ["made up/plan.json", "made up/plan-0123.json", "link.json"])
def test_an_export_never_replaces_what_a_study_lives_on(study, capsys, to):
    written(study / "made up", "made up", [0.9])
    (study / "made up" / "plan.json").write_text('{"points": []}')
    (study / "link.json").symlink_to(study / "made up" / "plan.json")
    before = {path: path.read_bytes() for path in (study / "made up").iterdir()}
    assert run("export", "made up", "--to", to) == 2
    assert f"--to {to}: is a file of a study's folder" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in (study / "made up").iterdir()} == before


def test_a_folder_of_other_things_is_told_from_one_of_results(study, capsys):
    (study / "experiments").mkdir()
    for command in ("status", "report", "export"):
        assert run(command, "experiments") == 2
        assert "experiments is not a results folder (no plan.json, no results.jsonl)." in " ".join(
            capsys.readouterr().err.split()
        )
    for command in ("plan", "run"):
        assert run(command, "experiments") == 2
        assert "experiments: is a folder; name a study's TOML file" in " ".join(capsys.readouterr().err.split())


def test_another_ending_is_refused_with_those_that_there_are(study, capsys):
    written(study / "made up", "made up", [0.9])
    assert run("export", "made up", "--to", "rows.xlsx") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rows.xlsx: expected a name that ends in .csv, .parquet, .json, .tex or .md" in said
    assert not (study / "rows.xlsx").exists()


BUDGET = (
    STUDY.replace("width = 0.25\n", "")
    + """
[budget]
match = ["none", "params"]
reference = { segments = "per_channel" }
[[contrasts]]
name = "fair"
margin = 0.005
between = [{ segments = 1, match = "params" }, { segments = 3, match = "params" }]
[[contrasts]]
name = "unfair"
between = [{ segments = 1, match = "none" }, { segments = 3, match = "none" }]
"""
)


@pytest.mark.medium
def test_a_plan_shows_widths_mismatch_and_what_contrasts_change(study, capsys):
    (study / "equal.toml").write_text(BUDGET)
    assert run("plan", "equal.toml") == 0
    said = capsys.readouterr().out
    assert "12 23 42" in said
    assert "−0.06%" in said
    blocks = [budget_name(match)[1:] for match in ("none", "params")]
    assert re.search(f"\n.{blocks[0]}\nsegments .*\n(.*\n){{3}}\n.{blocks[1]}, within 0.25%\nsegments ", said)
    assert "10 runs (5 configurations × 2 seeds): about" in said  # one network meets both budgets
    assert "fair: differs only in segments: 1 → 3; margin ±0.50 pp. MACs differ" in said
    assert "unfair: CONFOUNDED, changes 3 factors at once" in said
    assert [path.name for path in study.iterdir() if path.suffix != ".toml"] == []

    assert run("plan", "equal.toml", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["points"]) == 2 * 3 * 2
    solved = next(entry for entry in plan["points"] if entry["match"] == "params")
    assert solved["point"]["widths"] == [12, 23, 42]
    assert solved["params"] / solved["budget"] - 1 == solved["mismatch"]
    assert solved["seconds"] > 0
    assert [contrast["confounded"] for contrast in plan["contrasts"]] == [False, True]


@pytest.mark.slow
def test_a_network_that_serves_two_budgets_is_trained_once_and_shown_twice(study, capsys):
    (study / "equal.toml").write_text(BUDGET)
    assert run("run", "equal.toml", "--workers", "2") == 0
    said = capsys.readouterr()
    assert "10/10" in said.err
    assert "unfair: CONFOUNDED" in said.out
    rows = (study / "results" / "equal" / "results.jsonl").read_text().splitlines()
    table = load_results("results/equal")
    assert (len(rows), len(table)) == (10, 12)
    assert table.groupby(["match", "segments"]).size().tolist() == [2] * 6
    assert table.loc[table["match"] == "params", "budget_mismatch"].abs().max() < 0.01
    assert table.loc[table["match"] == "none", "budget_mismatch"].isna().all()
    page = (study / "results" / "equal" / "report.html").read_text()
    assert "cannot be attributed to any one of its 3 factors" in page
    assert "parameter-matched" in page
    assert (study / "results" / "equal" / "figures" / "budgets.png").exists()
    assert run("run", "equal.toml") == 0
    assert "10 of 10 runs had a result already" in capsys.readouterr().out
    assert run("status", "equal.toml") == 0
    assert "equal: complete. 10 runs; none failed or diverged." in capsys.readouterr().out


TUNED = (
    STUDY
    + """
[tune]
lr = [0.01, 0.1]
"""
)


@pytest.mark.slow
def test_a_search_says_what_it_chose_and_what_to_do_next(study, capsys):
    (study / "tuned.toml").write_text(TUNED)
    assert run("plan", "tuned.toml") == 0
    assert "6 sweep runs, then 6 final runs (3 configurations × 2 seeds): about" in capsys.readouterr().out
    assert run("run", "tuned.toml", "--workers", "2") == 0
    said = capsys.readouterr()
    assert said.out.count("chosen for") == 3
    assert "of the grid; a better value may lie beyond it" in said.err
    assert "at these values, repeat the command with --confirm" in said.out
    assert "figures/tuning.png" in said.out
    assert run("status", "results/tuned") == 0
    assert capsys.readouterr().out.endswith("next    spectrum run tuned.toml --confirm\n")
    assert run("plan", "tuned.toml") == 0
    said = capsys.readouterr().out
    assert "6 sweep runs, then 6 final runs (3 configurations × 2 seeds); 6 of 12 are left: about" in said
    assert said.endswith("next    spectrum run tuned.toml --confirm\n")
    assert run("run", "tuned.toml", "--workers", "2", "--confirm") == 0
    said = capsys.readouterr().out
    assert "accuracy" in said
    page = (study / "results" / "tuned" / "report.html").read_text()
    assert "the test set was not read" in page
    assert "spectrum run tuned.toml --confirm" in page


def test_an_audit_explains_every_counter(capsys):
    assert run("audit", "probe", "--segments", "8", "--layers") == 0
    said = capsys.readouterr().out
    assert "94,890 parameters · 3,564,800 MACs" in said
    assert "BN at 2 per value" in said
    assert "group error" in said
    assert "stages.0.0.body.1.spatial" in said
    assert "unexplained" not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prob"], "did you mean 'probe'?"),
        (["probe", "--image-size", "2"], "too small"),
        (["probe", "--shuffle"], "shuffle"),
        (["probe", "--batch-size", "0"], "batch_size=0: expected at least 1"),
    ],
)
def test_an_audit_of_what_cannot_be_is_refused(words, says, capsys):
    assert run("audit", *words) == 2
    assert says in capsys.readouterr().err


def test_a_plan_counts_clamped_layers_of_every_kind(study, capsys):
    base = STUDY.partition("[axes]")[0].replace("width = 0.25", "widths = [8, 16, 32]")
    cases = "[[cases]]\nstage_segments = [9, 17, 8]\n[[cases]]\nsegment_width = 9\n[[cases]]\npointwise_segments = 20\n"
    (study / "clamped.toml").write_text(f"{base}\n{cases}")
    assert run("plan", "clamped.toml") == 0
    said = capsys.readouterr().out
    assert "(4 of 6 layers clamped)" in said
    assert "(2 of 6 layers clamped)" in said
    assert "(5 of 6 layers clamped in pointwise_segments)" in said


NETWORK = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
def other(size): ...
def nothing(): ...
"""


@pytest.fixture
def own_network(study, monkeypatch):
    (study / "own_network.py").write_text(NETWORK)
    yield "own_network"
    sys.modules.pop("own_network", None)


def test_segment_counts_and_approximates_a_network_of_ones_own(own_network, capsys):
    from spectrum import measure_cost, segment_model

    assert main(["segment", f"{own_network}:net", "--segments", "1", "8", "per_channel", "--layers"]) == 0
    said = capsys.readouterr().out
    model = sys.modules[own_network].net()
    for segments in (1, 8, "per_channel"):
        new, _ = segment_model(model, segments)
        cost = measure_cost(new, (3, 32, 32))
        label = str(segments).replace("_", "-")
        assert re.search(rf"^{label} +1 of 2 +{cost.params:,} +{cost.macs:,} ", said, re.MULTILINE)
    assert re.search(r"^1 .* 100\.0%$", said, re.MULTILINE)  # 32 middle channels hold any kernel of 16 inputs
    assert "3 input channels, below least_channels=16" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["own_network"], "expected MODULE:FUNCTION"),
        (["own_network:missing"], "module own_network has no function missing"),
        (["own_network:other"], "give a function without arguments"),
        (["own_network:nothing"], "returned NoneType; expected a torch.nn.Module"),
        (["no_such_module:net"], "no such module"),
        (["own_network:net", "--segments", "0"], "--segments 0: expected a number of at least 1, or per_channel"),
        (["own_network:net", "--channels", "1"], "give --channels and --image-size that it takes"),
        (["own_network:net", "--select", "x"], "select='x': no k×k convolution has such a name"),
    ],
)
def test_segment_refuses_what_it_cannot_convert(own_network, capsys, words, says):
    assert main(["segment", *words]) == 2
    assert says in capsys.readouterr().err
