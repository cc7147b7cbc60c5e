"""Interface of engines: a study runs on any, built in or your own, and their settings are checked in one module."""

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spectrum import load_results, run_study
from spectrum._records import SpecError
from spectrum.cli import main
from spectrum.engines.interface import (
    Engine,
    EngineError,
    EngineSettings,
    Outcome,
    Work,
    engine_of,
    list_engines,
    register_engine,
)
from spectrum.engines.local import LocalEngine
from spectrum.engines.worker import train_one
from tests.runs import tiny

MEASURED = {"train_seconds", "images_per_second", "peak_memory_mb", "provenance"}
MODULE = """
from spectrum.engines.interface import Engine, Outcome, register_engine
from spectrum.engines.worker import train_one


class Alone(Engine):
    starts_processes = False

    def run(self, runs, work):
        for run in runs:
            yield Outcome(run, train_one(run, work, threads=1), None, 1)


register_engine("alone", Alone)
"""


class Mine(Engine):
    """Runs in this process, one after the other; records the settings that it was given."""

    starts_processes = False

    def __init__(self):
        self.told: list[Work] = []

    def run(self, runs, work):
        self.told.append(work)
        for run in runs:
            try:
                yield Outcome(run, train_one(run, work, threads=1), None, 1)
            except Exception as error:
                yield Outcome(run, None, f"{type(error).__name__}: {error}", 1)


@pytest.mark.medium
def test_an_engine_of_ones_own_gives_the_rows_of_the_local_one(study_folder):
    study, mine = tiny(axes={"segments": [1, 3], "seed": [0, 1]}), Mine()
    run_study(study, study_folder / "local", workers=4)  # one thread each
    run_study(study, study_folder / "mine", engine=mine, device="cpu", checkpoint_minutes=0.5, run_minutes=1)
    local, own = (
        load_results(study_folder / name).sort_values("id").reset_index(drop=True) for name in ("local", "mine")
    )
    for name in set(local.columns) - MEASURED:
        assert list(local[name].map(repr)) == list(own[name].map(repr)), name
    (work,) = mine.told
    assert (work.device, work.folder, work.runs) == ("cpu", study_folder / "mine", 4)
    assert work.saving.minutes == 0.25, "a run of limited time saves four times"


@pytest.mark.medium
def test_an_engine_that_a_module_registers_has_a_name_on_the_command_line(study_folder, capsys):
    (study_folder / "my_engine.py").write_text(MODULE)
    (study_folder / "s.toml").write_text(
        '[base]\ndataset = "digits"\ntrain_images = 40\nbatch_size = 20\nepochs = 1\nwidth = 0.1\n'
        "[axes]\nsegments = [1]\nseed = [0]\n"
    )
    words = [sys.executable, "-m", "spectrum", "run", "s.toml", "--import", "my_engine", "--engine", "alone"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_results("results/s")["status"].tolist() == ["done"]
    assert main(["run", "s.toml", "--epochs", "2", "--engine", "alnoe"]) == 2
    assert "engine = 'alnoe': unknown; try 'local', 'ray', 'torchrun'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        ("locla", "did you mean 'local'"),
        ("", "try 'local', 'ray', 'torchrun'"),
        (3, "engine = int: expected a name"),
        (None, "engine = NoneType: expected a name"),
        (LocalEngine, "engine = LocalEngine: expected a name, or an object"),
        ("torchrun", "needs ranks; start torchrun"),
    ],
)
def test_what_is_no_engine_is_refused_before_anything_is_written(study_folder, engine, why):
    with pytest.raises(SpecError, match=why):
        run_study(tiny(), engine=engine)
    assert not list(study_folder.iterdir())


def test_a_factory_that_gives_no_engine_is_refused():
    register_engine("of nothing", dict)
    with pytest.raises(SpecError, match="'of nothing': its factory gave dict; give a subclass of Engine"):
        engine_of("of nothing")


@pytest.mark.parametrize(("name", "factory"), [("", Mine), ("  ", Mine), (3, Mine), ("one", None), ("local", Mine)])
def test_what_cannot_be_registered_is_refused(name, factory):
    with pytest.raises(ValueError, match=r"expected|must return an Engine|registered already"):
        register_engine(name, factory)


def test_the_same_factory_may_be_registered_again():
    register_engine("twice", Mine)
    register_engine("twice", Mine)
    assert "twice" in list_engines()
    assert isinstance(engine_of("twice"), Mine)
    with pytest.raises(ValueError, match="registered already"):
        register_engine("twice", LocalEngine)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"workers": 0}, "workers: input should be greater than or equal to 1"),
        ({"workers": True}, "workers: input should be a valid integer"),
        ({"workers": 1.5}, "workers: input should be a valid integer"),
        ({"device": "tpu"}, "device: 'tpu' is unknown"),
        ({"imports": "my_models"}, "imports: expected a list"),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes: input should be greater than or equal to 0"),
        ({"checkpoint_minutes": float("nan")}, "checkpoint_minutes: input should be"),
        ({"wokers": 2}, "wokers: unknown field; did you mean 'workers'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(study_folder, settings, why):
    with pytest.raises(SpecError, match=why):
        run_study(tiny(), **settings)
    assert not list(study_folder.iterdir())


@given(st.sampled_from(["workers", "checkpoint_minutes", "run_minutes", "memory_gb"]), st.floats() | st.integers())
@example("checkpoint_minutes", 2**53 + 1)
def test_a_number_is_taken_where_it_can_be_and_refused_where_not(name, value):
    """Against the rule in words: workers are whole from 1 up; limits are above 0; checkpoints come after 0 or more."""
    whole = isinstance(value, int)
    can_be = {"workers": whole and value >= 1, "checkpoint_minutes": value >= 0}.get(name, value > 0)
    if can_be:
        kept = value if name == "workers" else float(value)  # minutes and GB, to which 2⁵³ + 1 is 2⁵³
        assert getattr(EngineSettings(**{name: value}), name) == kept
    else:
        with pytest.raises(SpecError, match=name):
            EngineSettings(**{name: value})


def test_the_flags_of_run_are_the_fields_of_the_settings(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help-all"])
    help_text = capsys.readouterr().out
    for name in EngineSettings.model_fields:
        assert f"--{'import' if name == 'imports' else name.replace('_', '-')}" in help_text


def test_choosing_an_engine_loads_no_torch_and_no_ray():
    code = "import sys; from spectrum.engines.interface import engine_of, EngineSettings; EngineSettings(workers=2); "
    code += "print([name for name in ('torch', 'ray', 'pebble') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Unlimited(LocalEngine):
    unused = ("run_minutes", "memory_gb")


@pytest.mark.parametrize("settings", [{"run_minutes": 3}, {"memory_gb": 4.0}])
def test_settings_that_an_engine_cannot_keep_are_refused_before_anything_is_written(study_folder, settings):
    with pytest.raises(SpecError, match=rf"{next(iter(settings))}: this engine \(Unlimited\) does not use it"):
        run_study(tiny(), engine=Unlimited(), **settings)
    assert not list(study_folder.iterdir())


class Gives(Engine):
    """What it was made with, whatever that is."""

    starts_processes = False

    def __init__(self, what):
        self.what = what

    def run(self, runs, work):
        trained = [Outcome(run, train_one(run, work, threads=1), None, 1) for run in runs]
        return self.what(trained)


@pytest.mark.parametrize(
    ("what", "rows", "says"),
    [
        (lambda outcomes: None, 0, "its run gave NoneType; yield an Outcome for each run"),
        (lambda outcomes: outcomes[:1], 1, "gave no outcome for 1 of 2 runs; yield one for each"),
        (lambda outcomes: [outcomes[0], outcomes[0]], 1, "yielded run .*, which is done or was not asked for"),
        (lambda outcomes: [vars(outcomes[0])], 0, "yielded dict; yield an Outcome for each run"),
        (
            lambda outcomes: [Outcome(outcomes[0].run, {"test_accuracy": 0.5}, None, 1)],
            0,
            "its result has no status, history, provenance, .*; give what train_one returns",
        ),
    ],
)
def test_an_engine_that_gives_something_else_is_an_error_and_what_it_gave_is_kept(what, rows, says, study_folder):
    with pytest.raises(EngineError, match=f"engine Gives: {says}"):
        run_study(tiny(), "out", engine=Gives(what), device="cpu")
    path = study_folder / "out/results.jsonl"
    assert len(path.read_text().splitlines() if path.exists() else []) == rows


def test_an_engine_may_give_all_outcomes_at_once(study_folder):
    assert run_study(tiny(), "out", engine=Gives(list), device="cpu").trained == 2


class Closes(Gives):
    closed = False

    def run(self, runs, work):
        try:
            yield from super().run(runs, work)
            yield "more"
        finally:
            Closes.closed = True


def test_an_engine_is_closed_where_it_went_wrong(study_folder):
    with pytest.raises(EngineError, match="yielded str"):
        run_study(tiny(), "out", engine=Closes(list), device="cpu")
    assert Closes.closed
