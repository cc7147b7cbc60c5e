"""The study to which a folder belongs: one rule for all commands and for `run_study`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrum import load_study, run_study
from spectrum._records import SpecError
from spectrum.cli import main
from spectrum.design.study_file import parse_study
from spectrum.study.identity import contrasts_changed, held_by
from spectrum.study.store import Store, StoreError, read_plan
from tests.plans import plan_of
from tests.runs import tiny

STUDY = """
[base]
dataset = "digits"
train_images = 100
batch_size = 50
epochs = {epochs}
width = 0.25
[axes]
segments = {segments}
seed = {seeds}
"""
READERS = (["report"], ["export"], ["export", "--to", "table.md"], ["doctor"], ["doctor", "--repair"], ["status"])


def write(path, segments="[1, 3]", seeds="[0]", epochs=1, more=""):
    path.parent.mkdir(exist_ok=True)
    path.write_text(STUDY.format(segments=segments, seeds=seeds, epochs=epochs) + more)
    return str(path)


def hold(folder, study, rows=True):
    """A folder as a run of the study leaves it, without the training."""
    with Store(folder) as store:
        runs = study.runs()
        entries = [
            {"id": run.id, "asked": run.id, "point": run.model_dump(mode="json", exclude_defaults=True)} for run in runs
        ]
        base, varied = study.base.model_dump(mode="json"), study.varied()
        named = {"study": study.name, "hash": study.hash, "base": base, "varied": varied}
        store.freeze(plan_of(named | {"points": entries, "contrasts": []}))
        for run in runs if rows else ():
            fields = run.model_dump(mode="json")
            store.append({"id": run.id, "study": study.name, "status": "done", **fields, "test_accuracy": 0.5})
    (folder / "report.html").write_text("the page of the first study")


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".writer"}


def run(*words):
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def two(study_folder):
    """Two files of one name, of which the first has run, and the folder that it left."""
    first, second = write(study_folder / "a" / "x.toml"), write(study_folder / "b" / "x.toml", epochs=2)
    hold(study_folder / "results" / "x", load_study(first))
    return first, second


@pytest.mark.parametrize("words", [*READERS, ["plan"], ["run"]], ids=" ".join)
def test_no_command_takes_the_folder_of_another_study_of_the_same_name(two, study_folder, capsys, words):
    before = everything(study_folder / "results")
    command, *flags = words
    assert run(command, two[1], *flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "results/x: holds the study x" in said.err
    assert "no run of x as its file is now" in said.err
    assert everything(study_folder / "results") == before


@pytest.mark.parametrize("words", [*READERS, ["plan"], ["run"]], ids=" ".join)
def test_no_command_takes_the_folder_of_a_study_of_another_name(two, study_folder, capsys, words):
    other = write(study_folder / "other.toml", segments="[1, 3, 4]")  # though it shares runs with the first
    before = everything(study_folder / "results")
    command, *flags = words
    assert run(command, other, "--out", "results/x", *flags) == 2
    assert "results/x: holds the study x" in capsys.readouterr().err
    assert everything(study_folder / "results") == before


@pytest.mark.parametrize("words", [["plan"], ["run"]], ids=" ".join)
def test_overrides_are_another_study_also_where_the_folder_is_given(two, capsys, words):
    assert run(*words, two[0], "--epochs", "2", "--out", "results/x") == 2
    assert "results/x: holds the study x" in capsys.readouterr().err


def test_the_python_function_keeps_the_same_rule(two, study_folder):
    before = everything(study_folder / "results")
    for study in (load_study(two[1]), load_study(two[0]).model_copy(update={"name": "y"}).with_base(epochs=2)):
        with pytest.raises(StoreError, match="results/x: holds the study x"):
            run_study(study, "results/x")
    assert everything(study_folder / "results") == before


def test_the_folder_itself_is_read_whatever_files_there_are(two, capsys):
    assert run("status", "results/x") == 0
    assert "complete. 2 runs; none failed or diverged." in capsys.readouterr().out
    assert run("export", "results/x", "--to", "rows.csv") == 0


@pytest.mark.medium
@pytest.mark.parametrize("more", [{"seeds": "[0, 1]"}, {"segments": "[1, 3, 4]"}, {"segments": "[3]"}], ids=str)
def test_a_study_that_has_grown_or_shrunk_is_read_when_it_has_run_again(two, study_folder, capsys, more):
    grown = write(study_folder / "a" / "x.toml", **more)
    for command in ("report", "export"):
        assert run(command, grown) == 2
        assert "x has changed since it ran here" in capsys.readouterr().err
    assert run("status", grown) == 0
    assert "the study has changed since it ran here" in capsys.readouterr().out
    assert run("plan", grown) == 0
    assert held_by(study_folder / "results" / "x", load_study(grown)) == "version"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epochs": 5}, "(epochs was 1 and is 5)"),
        ({"seeds": "[0, 1]"}, "(seed was [0] and is [0, 1])"),
        ({"segments": "[1, 3, 4]"}, "(segments was [1, 3] and is [1, 3, 4])"),
        ({"segments": "[3]", "epochs": 2}, "(segments was [1, 3] and is [3], epochs was 1 and is 2)"),
    ],
    ids=str,
)
def test_a_refusal_names_the_options_that_changed_with_both_values(two, study_folder, capsys, changed, words):
    assert run("report", write(study_folder / "a" / "x.toml", **changed)) == 2
    assert words in capsys.readouterr().err


def test_the_same_runs_are_the_same_study_whatever_it_is_called(two, study_folder):
    renamed = load_study(write(study_folder / "renamed.toml"))
    assert held_by(study_folder / "results" / "x", renamed) == "same"


def test_a_plan_under_which_nothing_has_finished_is_replaced(study_folder):
    first, second = tiny(), tiny(base={"epochs": 5})
    hold(study_folder / "results" / "tiny", first, rows=False)
    assert held_by(study_folder / "results" / "tiny", second) == "version"
    assert held_by(study_folder / "results" / "tiny", second.model_copy(update={"name": "other"})) == "other"


def test_rows_without_a_plan_are_told_by_their_study_and_their_ids(study_folder):
    first, folder = tiny(), study_folder / "results" / "tiny"
    assert held_by(folder, first) == "nothing"
    hold(folder, first)
    (folder / "plan.json").unlink()
    assert held_by(folder, tiny(base={"epochs": 5})) == "version", "of its name"
    assert held_by(folder, tiny("other")) == "version", "of its runs"
    assert held_by(folder, tiny("other", base={"epochs": 5})) == "other"


CONTRAST = '[[contrasts]]\nname = "{}"\nbetween = [{{ segments = 1 }}, {{ segments = 3 }}]\n'


def test_contrasts_that_changed_after_the_plan_was_frozen_are_told(two, study_folder, capsys):
    edited = write(study_folder / "a" / "x.toml", more=CONTRAST.format("found later"))
    assert contrasts_changed(load_study(edited), read_plan(study_folder / "results" / "x"))
    assert run("export", edited, "--to", "rows.csv") == 0
    assert "its contrasts have changed" in capsys.readouterr().err
    assert run("export", edited, "--to", "rows.csv", "--contrasts") == 2
    assert (
        "the file has [[contrasts]], but the frozen plan in this folder has none; run the study"
        in capsys.readouterr().err
    )
    assert run("export", "results/x", "--to", "rows.csv", "--contrasts") == 2
    assert "the study has no [[contrasts]]; add them" in capsys.readouterr().err


@pytest.mark.parametrize("second", ["one", " one", "one "])
def test_two_contrasts_of_one_name_are_refused(study_folder, second):
    path = write(study_folder / "x.toml", more=CONTRAST.format("one") + CONTRAST.format(second))
    with pytest.raises(SpecError, match=r"contrasts\.1\.name: 'one' is the name of contrasts\.0 too; rename one"):
        load_study(path)


# Names of folders


def named(**overrides):
    return parse_study({"base": {"dataset": "digits"}}, "x").with_base(**overrides).name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"dataset": "./a/b"}, {"dataset": "./a_b"}),
        ({"dataset": "./花"}, {"dataset": "./鳥"}),
        ({"dataset": "./" + 200 * "a" + "b"}, {"dataset": "./" + 200 * "a" + "c"}),
        ({"dataset": "./a--epochs-2"}, {"dataset": "./a", "epochs": 2}),
        ({"dataset": "a b"}, {"dataset": "a_b"}),
        ({"widths": (1, 23, 4)}, {"widths": (12, 3, 4)}),
    ],
    ids=str,
)
def test_other_overrides_are_another_folder(one, other):
    assert named(**one) != named(**other)


@given(st.lists(st.text(min_size=1).filter(str.isprintable), min_size=2, max_size=5, unique=True))
def test_no_two_data_sets_share_a_folder(datasets):
    names = [named(dataset=dataset, epochs=2) for dataset in datasets]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 101 and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"epochs": 2}, "x--epochs-2"),
        ({"residual": False}, "x--residual-False"),
        ({"dataset": "fashion_mnist", "lr": 0.001}, "x--dataset-fashion_mnist--lr-0.001"),
        ({"segments": "per_channel"}, "x--segments-per_channel"),
    ],
    ids=str,
)
def test_overrides_that_a_folder_can_be_called_by_are_its_name(overrides, name):
    study = parse_study({}, "x").with_base(**overrides)
    assert (study.name, study.file_name) == (name, "x")


def test_overrides_of_overrides_keep_the_name_of_the_file():
    study = parse_study({}, "x").with_base(dataset="./a/b").with_base(epochs=3)
    assert study.file_name == "x"
    assert json.loads(study.model_dump_json())["overrides"] == {"dataset": "./a/b", "epochs": 3}
