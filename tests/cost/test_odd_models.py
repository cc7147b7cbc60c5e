"""`audit` and `plan` of your own networks: they name what is not counted, and refuse networks that take no image."""

import json

import pytest

from spectrum import build_model, load_study, measure_cost
from spectrum.cli import main
from spectrum.study.planning import plan_study
from tests.cost import odd_models

IMPORT = ("--import", odd_models.__name__)
STUDY = """
[base]
model = "{model}"
dataset = "digits"
train_images = 100
batch_size = 50
epochs = 1
[axes]
seed = [0, 1]
"""


@pytest.mark.parametrize("model", ["odd_mixer", "odd_scores"])
def test_an_audit_names_what_it_does_not_count(model, capsys):
    assert main(["audit", model, *IMPORT]) == 0
    said = capsys.readouterr().out
    assert "not counted" not in said.partition("\n")[0]
    assert "\nNot counted, since the cost is unknown: aten._fft_c2c (2 calls); " in said
    assert "The MACs are a lower bound.\n" in said


def test_an_audit_of_what_is_all_counted_has_no_caveat(capsys):
    assert main(["audit", "odd_attention", *IMPORT, "--batch-size", "2"]) == 0
    said = capsys.readouterr().out
    assert "Not counted" not in said
    assert "measured, 1 thread" in said


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("odd_words", "model 'odd_words' does not take one image of 3×32×32: RuntimeError: Expected tensor"),
        ("odd_broken", "model 'odd_broken' cannot be built: IndexError: list index out of range; fix it"),
    ],
)
def test_an_audit_of_a_network_that_takes_no_image_is_refused_in_a_sentence(model, says, capsys):
    assert main(["audit", model, *IMPORT]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert "Traceback" not in said.err


def test_a_speed_that_cannot_be_measured_is_refused_in_a_sentence(capsys):
    assert main(["audit", "odd_mixer", *IMPORT, "--batch-size", "2"]) == 2
    assert "batch_size: one example gives Output; a training step needs a classifier" in capsys.readouterr().err


def test_a_plan_names_what_it_does_not_count(study_folder, capsys):
    (study_folder / "odd.toml").write_text(STUDY.format(model="odd_scores"))
    assert main(["plan", "odd.toml", *IMPORT]) == 0
    said = capsys.readouterr().out
    assert said.count("model odd_scores: Not counted, since the cost is unknown: aten._fft_c2c") == 1
    assert main(["plan", "odd.toml", "--json", *IMPORT]) == 0
    runs = json.loads(capsys.readouterr().out)["points"]
    assert all("aten._fft_c2c" in run["caveat"] for run in runs)


def test_a_budget_of_macs_holds_where_macs_only_look_like_a_multiple_of_the_weights(study_folder):
    budget = '[budget]\nmatch = "macs"\nreference = { model = "probe", segments = "per_channel" }\n'
    (study_folder / "odd.toml").write_text(STUDY.format(model="odd_attention") + budget)
    (one, _) = plan_study(load_study("odd.toml"))
    model = build_model("odd_attention", in_channels=1, image_size=8, widths=one.run.widths)
    macs = measure_cost(model, (1, 8, 8)).macs
    assert one.macs == macs
    assert one.mismatch == macs / one.budget - 1
    assert abs(one.mismatch) <= 0.01
