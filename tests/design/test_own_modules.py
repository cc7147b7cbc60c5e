"""Your own models: named in a study's file, found by every process that trains, or refused with the reason."""

import json
import subprocess
import sys

import pytest

from spectrum._records import SpecError
from spectrum.design.own_modules import check_workers_know, import_modules, modules_of, registered
from spectrum.design.study_file import Study, load_study, parse_study
from spectrum.models.families import FAMILIES, Family
from tests.registries import restored

MODULE = """
from torch import nn
from spectrum import register_model

def {name}(arch):
    return nn.Sequential(nn.Flatten(), nn.Linear(arch.in_channels * arch.image_size**2, arch.num_classes))

register_model("{name}", {name})
"""
BASE = {"dataset": "digits", "train_images": 100, "batch_size": 50, "epochs": 1}


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    restored(monkeypatch, FAMILIES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def write(folder, module, **said):
    """A module of models and a study of it; the study's path."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(MODULE.format(name=f"of_{module}"))
    path = folder / "own.toml"
    path.write_text(f'import = "{module}"\n[base]\nmodel = "of_{module}"\n[axes]\nseed = [0, 1]\n')
    return path


def test_a_file_names_the_module_of_its_models_wherever_it_is_read_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = load_study(write(tmp_path / "deep", "beside_the_file"))
    assert study.imports == ("beside_the_file",)
    write(tmp_path, "in_the_current_folder")
    (tmp_path / "deep/other.toml").write_text('import = ["in_the_current_folder"]\n[base]\nepochs = 2\n')
    assert load_study("deep/other.toml").imports == ("in_the_current_folder",)
    assert Study(name="x", imports="in_the_current_folder").imports == ("in_the_current_folder",)


def test_imports_are_no_part_of_ids_and_hashes(tmp_path):
    study = load_study(write(tmp_path, "hashed"))
    assert study.hash == study.model_copy(update={"imports": ()}).hash


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ('"no_such_module_anywhere"', "import = no_such_module_anywhere: no such module in the folder of the study"),
        ('"my_models.py"', "import: 'my_models.py' is not a module name; give one as Python imports it"),
        ('["../evil"]', "import: '../evil' is not a module name"),
        ("3", "import: expected a list"),
        ('"broken"', "import = broken: SyntaxError"),
        ('"ends"', "import = ends: SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(tmp_path, said, says):
    (tmp_path / "my_models").mkdir()
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "x.toml").write_text(f"import = {said}\n[base]\nepochs = 2\n")
    with pytest.raises(SpecError) as caught:
        load_study(tmp_path / "x.toml")
    assert f"x.toml: {says}" in str(caught.value)


def test_the_keys_name_is_import():
    with pytest.raises(SpecError, match='imports: unknown key; did you mean "import"'):
        parse_study({"imports": "json", "base": {"epochs": 2}}, "x")


def test_another_module_of_the_same_name_is_never_taken_for_it(tmp_path):
    load_study(write(tmp_path / "first", "twice"))
    with pytest.raises(SpecError, match=r"import = twice: another module of this name is loaded, from .*first"):
        load_study(write(tmp_path / "second", "twice"))


def test_workers_import_what_registered_a_model(tmp_path):
    study = load_study(write(tmp_path, "registers"))
    assert modules_of(registered(["probe", "of_registers"]), ["json"]) == ("json", "registers")
    assert modules_of(registered(["of_registers"]), study.imports) == ("registers",)


def command(folder, *words, say=None):
    return subprocess.run(
        [sys.executable, *words], cwd=folder, input=say, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_a_study_that_names_its_module_runs_and_freezes_it(tmp_path):
    path = write(tmp_path / "studies", "frozen")
    flags = ("--epochs", "1", "--train-images", "100", "--batch-size", "50")
    done = command(tmp_path, "-m", "spectrum", "run", str(path), *flags)
    assert done.returncode == 0, done.stderr
    (plan,) = tmp_path.glob("results/*/plan.json")
    assert json.loads(plan.read_text())["imports"] == ["frozen"]


@pytest.mark.slow
def test_rows_of_a_model_are_not_mixed_with_those_of_its_changed_code(tmp_path):
    path = write(tmp_path, "changing")
    base = 'dataset = "digits"\ntrain_images = 100\nbatch_size = 50\nepochs = 1\n[axes]'
    path.write_text(path.read_text().replace("[axes]", base))
    assert command(tmp_path, "-m", "spectrum", "run", "own.toml").returncode == 0
    rows = (tmp_path / "results/own/results.jsonl").read_bytes()
    module = tmp_path / "changing.py"
    module.write_text(module.read_text().replace("def ", "# a comment\n\ndef "))
    assert "2 of 2 runs had a result already" in command(tmp_path, "-m", "spectrum", "run", "own.toml").stdout
    module.write_text(module.read_text().replace("nn.Flatten(),", "nn.Flatten(), nn.Identity(),"))
    done = command(tmp_path, "-m", "spectrum", "run", "own.toml")
    assert done.returncode == 2
    assert "its rows were trained with another version of changing" in " ".join(done.stderr.split())
    assert (tmp_path / "results/own/results.jsonl").read_bytes() == rows
    assert command(tmp_path, "-m", "spectrum", "run", "own.toml", "--out", "other").returncode == 0


STUDY = f"""
from spectrum import RunConfig, Study, run_study
study = Study(name="own", base=RunConfig(model="of_script", **{BASE}))
"""
RUN = 'print(run_study(study, workers=1, device="cpu").trained)'


@pytest.mark.medium
def test_a_session_without_a_script_says_what_to_do_before_anything_is_trained(tmp_path):
    again = MODULE.format(name="of_script") * 2  # a cell that runs twice
    done = command(tmp_path, "-", say=f"{again}{STUDY}{RUN}\n")
    assert done.stderr.splitlines()[-1].endswith(
        "model = 'of_script': worker processes cannot see what is registered in this session; "
        'call register_model in a module, such as my_models.py, and give imports=["my_models"]'
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_script_that_registers_at_its_top_level_works(tmp_path):
    text = f'{MODULE.format(name="of_script")}if __name__ == "__main__":\n    ' + "\n    ".join(
        [*STUDY.strip().splitlines(), RUN]
    )
    (tmp_path / "script.py").write_text(text)
    done = command(tmp_path, "script.py")
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.medium
def test_a_script_that_hides_its_model_from_workers_says_so(tmp_path):
    lines = [*MODULE.format(name="of_script").splitlines(), *STUDY.splitlines(), RUN]
    (tmp_path / "script.py").write_text('if __name__ == "__main__":\n' + "\n".join(f"    {line}" for line in lines))
    done = command(tmp_path, "script.py")
    assert "model = 'of_script': worker processes import this script and do not find it there" in done.stderr
    assert not (tmp_path / "results").exists()


def test_nodes_of_a_cluster_never_see_a_script(monkeypatch):
    FAMILIES.add("mine", Family("no:where", None), maker=dict, home="__main__")
    with pytest.raises(SpecError, match="worker processes cannot see what is registered in this"):
        check_workers_know(registered(["mine"]), [], elsewhere=True)
    check_workers_know(registered(["probe"]), [], elsewhere=True)


def test_the_folder_of_a_module_is_looked_through_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        import_modules(["json"], folder=tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.medium
def test_what_a_module_registers_only_when_it_is_called_is_refused_before_anything_is_trained(tmp_path):
    text = MODULE.format(name="plugged").replace("register_model(", "def install():\n    register_model(")
    (tmp_path / "plugin.py").write_text(text)
    lines = [line.replace("of_script", "plugged") for line in STUDY.splitlines()]
    body = "\n".join(f"    {line}" for line in ["import plugin", "plugin.install()", *lines, RUN])
    (tmp_path / "script.py").write_text(f'if __name__ == "__main__":\n{body}\n')
    done = command(tmp_path, "script.py")
    assert "model = 'plugged': worker processes import plugin and do not find it there" in done.stderr
    assert not (tmp_path / "results").exists()
