"""What the README shows works, and its numbers are those of the rows."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

from spectrum import build_model, load_results, measure_cost, read_plan
from spectrum.analysis.contrasts import contrasts
from spectrum.analysis.sentences import sentence
from spectrum.bench import engine, op, sweep, train
from spectrum.bench import models as networks
from spectrum.design.study_file import parse_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TEMPLATES = sorted(ROOT.glob("results/**/README.md.jinja"))
WRITTEN = [path for path in TEMPLATES if path.with_suffix("").exists()]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def block_with(language, text):
    (block,) = [block for block in blocks(language) if text in block]
    return block


def test_every_line_of_the_operation_runs():
    names = {}
    exec(block_with("python", "SegmentedConv2d(64, 128, segments=1)(x)"), names)
    for line in block_with("python", "SegmentedConv2d(64, 128, segments=1)(x)").splitlines():
        if line.startswith("SegmentedConv2d"):
            assert eval(line, names).shape == (8, 128, 32, 32)


def test_the_study_is_a_study_with_as_many_runs_as_it_says():
    study = parse_study(tomllib.loads(block_with("toml", "my_study.toml")), "my_study")
    assert f"asks for {len(study.runs())} training runs" in README


def test_the_cost_that_is_quoted_is_the_cost():
    cost = measure_cost(build_model("probe", segments=8, in_channels=1, image_size=28), (1, 28, 28))
    assert f"Cost(params={cost.params}, macs={cost.macs}, backward_macs={cost.backward_macs}, …)" in README


def test_the_first_study_and_its_table_are_as_the_readme_says():
    study = parse_study(tomllib.loads((ROOT / "experiments/quickstart.toml").read_text()), "quickstart")
    assert f"a first study, {len(study.runs())} small networks" in README
    table = [line.split() for line in block_with("", "segments     accuracy").splitlines()[1:]]
    assert [row[0] for row in table] == [str(value).replace("_", "-") for value in study.axes["segments"]]
    for label, _, _, _, seeds, params, macs, _ in table:
        segments = int(label) if label.isdigit() else "per_channel"
        (run, *_) = [run for run in study.runs() if run.segments == segments]
        network = build_model(run.model, run.network_options(1, 10, 8))
        cost = measure_cost(network, (1, 8, 8))
        assert (int(seeds), params, macs) == (len(study.axes["seed"]), f"{cost.params:,}", f"{cost.macs:,}")


def test_versions_networks_and_speed_are_as_the_readme_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = [one for one in project["dependencies"] if one.startswith("torch>")]
    python = project["requires-python"].removeprefix(">=")
    assert f"Python {python} or newer and PyTorch {torch.removeprefix('torch>=')} or newer" in README
    counting = "from spectrum import list_models; print(len(list_models()))"  # elsewhere: tests register their own here
    count = int(subprocess.run([sys.executable, "-c", counting], capture_output=True, text=True, check=True).stdout)
    assert {8: "eight"}[count] + " networks" in README
    found = op.findings(pd.read_csv(ROOT / "results/bench/amd-epyc/op.csv"))
    (least, _), (_, most) = (found[f"speedup over the best other at {width} per segment"] for width in (4, 2))
    assert f"{least:.1f} to {most:.1f} times as fast" in " ".join(README.split())


def test_nothing_is_left_to_be_filled_in():
    assert "@@" not in README
    assert "TODO" not in README


def test_files_that_the_readme_links_to_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_sentences_that_are_quoted_are_those_of_the_study():
    folder = ROOT / "results/curve"
    judged = contrasts(load_results(folder), read_plan(folder).contrasts)
    said = [sentence(row) for _, row in judged.iterrows()]
    quotes = re.findall(r"^> (.*(?:\n>.*)*)", README, re.MULTILINE)
    quoted = [" ".join(quote.replace("\n>", "").split()) for quote in quotes]
    assert len(quoted) == 1
    assert all(quote in said for quote in quoted)


def script(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "results")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def readmes():
    return script("readmes")


@pytest.mark.medium
@pytest.mark.parametrize("template", WRITTEN, ids=lambda path: path.parent.name)
def test_a_page_of_the_map_is_what_its_rows_say(template, readmes):
    assert template.with_suffix("").read_text() == readmes.render(template), "write the pages anew: make readmes"


@pytest.mark.medium
def test_the_findings_on_front_pages_are_what_the_rows_say(readmes):
    for page in readmes.FRONT_PAGES:
        assert page.read_text() == readmes.with_parts(page), "write it anew: make readmes"
        assert page.read_text().count("<!-- findings: make readmes -->") == 1


def test_every_study_with_rows_and_a_template_has_its_page(readmes):
    assert readmes.templates() == WRITTEN
    assert set(ROOT.glob("results/*/README.md")) < {path.with_suffix("") for path in WRITTEN}, "one has no template"


def test_the_table_of_all_rows_and_its_card_are_what_the_studies_have():
    rows = script("rows")
    table = pd.read_parquet(ROOT / "results/rows.parquet")
    collected = rows.collected()
    assert list(table) == list(collected), "write it anew: make readmes"
    assert len(table) == len(collected), "write it anew: make readmes"
    for name in ("study", "kind", "id", "test_accuracy", "val_accuracy", "weights_sha256", "revision", "params"):
        pd.testing.assert_series_equal(table[name], collected[name], check_dtype=False, check_exact=True)
    assert rows.card(table) == (ROOT / "results/rows.md").read_text(), "write it anew: make readmes"
    assert all(rows.described().values()), "every column is said to be something"


def test_every_row_has_its_widths_and_says_how_many_it_shares_its_run_with():
    table = pd.read_parquet(ROOT / "results/rows.parquet")
    assert not table[["widths", "segments_number", "shared", "epochs_trained", "best_val_accuracy"]].isna().any().any()
    assert (table.groupby(["study", "id"])["id"].transform("size") == table["shared"]).all()
    numbers = table[table["segments"].str.fullmatch(r"\d+").fillna(False)]
    assert (numbers["segments_number"] <= numbers["segments"].astype(int)).all(), "fewer only where a layer is clamped"
    ends = table[table["segments"] == "per_channel"]
    assert (ends["segments_number"] == ends["widths"].map(lambda widths: widths[-1])).mean() > 0.9  # but for resnext's
    timed = table[table["match"] == "step_time"]
    assert len(timed)
    assert timed["step_seconds"].gt(0).all()
    assert table.loc[table["status"] != "failed", "train_step_seconds"].gt(0).all()
    solved = table.dropna(subset="widths_said")
    assert all(map(np.array_equal, solved["widths"], solved["widths_said"]))


@pytest.mark.parametrize("name", ["curve", "curve_cifar10"])
def test_what_width_explains_is_what_a_regression_on_the_table_of_rows_says(name):
    found = script("pages.study").study_page(name).widths
    table = pd.read_parquet(ROOT / "results/rows.parquet")
    table = table[(table["study"] == name) & (table["kind"] == "scored")]
    table["mean width"] = table["widths"].map(lambda widths: np.prod(widths.astype(float)) ** (1 / len(widths)))
    by = ["segments", "pointwise", "params", "macs", "mean width"]  # a network has its own counts
    means = table.groupby(by)[["test_accuracy", "train_loss", "segments_number"]].mean().reset_index()
    curve, plain = means[means["pointwise"]], means[~means["pointwise"]]
    assert len(curve) == len(found.with_1x1)
    line = linregress(np.log2(curve["mean width"]), curve["test_accuracy"])
    assert found.line == pytest.approx((line.slope, line.intercept), abs=1e-5)
    assert found.explained("width") == pytest.approx(line.rvalue**2, abs=1e-4)
    along = linregress(np.log2(curve["segments_number"].astype(float)), curve["test_accuracy"])
    assert found.explained("segments") == pytest.approx(along.rvalue**2, abs=2e-3)  # a number of the widest layer
    above = plain["test_accuracy"] - line.intercept - line.slope * np.log2(plain["mean width"])
    assert sorted(found.above_line) == pytest.approx(sorted(above), abs=1e-5)
    losses = linregress(curve["train_loss"], curve["test_accuracy"])
    assert found.underfitting == pytest.approx(losses.rvalue, abs=1e-4)


def test_a_claim_that_the_rows_do_not_bear_out_is_no_page(readmes):
    assert readmes.holds(True, "so it is") == "so it is"
    with pytest.raises(ValueError, match="the rows contradict this claim: so it is"):
        readmes.holds(False, "so it is")


def test_a_study_whose_search_alone_has_run_has_no_page_yet(readmes, tmp_path):
    whole = ROOT / "results/curve"
    searched = {run.id for run in read_plan(whole).swept}
    rows = (whole / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "plan.json").write_bytes((whole / "plan.json").read_bytes())
    (tmp_path / "results.jsonl").write_text("".join(row for row in rows if json.loads(row)["id"] in searched))
    assert not readmes.has_rows(tmp_path)
    assert not readmes.has_rows(tmp_path / "nowhere")
    assert readmes.has_rows(whole)


@pytest.mark.medium
def test_the_map_draws_every_study_that_is_complete(readmes):
    figure = script("map").draw()
    drawn = {"curve", "curve_cifar10", "activation", "order", "residual"}
    for folder in ROOT.glob("results/*/plan.json"):
        name = folder.parent.name
        if name in drawn and readmes.complete(name):
            said = re.sub(r"\s+", " ", figure.get_supxlabel())
            assert f"{name} {read_plan(folder.parent).hash[:8]}" in said


NUMBER = r"(?:(?<![×\w])\d+(?:,\d{3})*(?:\.\d+)?|\b(?:two|three|four|five|six|seven|eight|nine|ten))"
UNIT = r"(?:%|pp\b|×(?!\d)|-fold\b|times\b|ms\b|s\b|GB\b|seeds\b|runs\b|epochs\b|parameters\b|percentage points\b)"
MEASURED = re.compile(rf"\d+\.\d+|{NUMBER}\s?{UNIT}|\bn = \d+", re.IGNORECASE)
CHOSEN = {"95%", "80%", "5%", "100%"}  # of CIs, power and tests, and what a network without label noise could reach
SET = {  # what a page says of its own set-up and aims
    "bench": {"0.1", "two seeds", "2 epochs", "3%", "5 s", "1.5", "95%"},
    "results": {"two runs"},  # that trained side by side
    "teacher": {"Eight epochs"},
}


def typed(text):
    """Figures with a unit that a template has outside its expressions."""
    prose = re.sub(r"\{[{%#].*?[%#}]\}", "…", text, flags=re.DOTALL)
    return [found[0] for found in MEASURED.finditer(re.sub(r"`[^`]*`", "", prose))]


@pytest.mark.parametrize(
    "template", sorted(ROOT.glob("results/**/*.jinja")), ids=lambda path: path.parent.name + path.stem
)
def test_no_measured_figure_is_typed_into_a_template(template):
    assert set(typed(template.read_text())) <= CHOSEN | SET.get(template.parent.name, set())


@pytest.mark.parametrize(
    "said", ["by 1.2 pp", "gain 8%", "4 times as fast", "3× as long", "six seeds", "n = 6", "9-fold"]
)
def test_a_measured_figure_is_found(said):
    assert typed(f"A 3×3 in 4 segments {said} with {{{{ 1.5 }}}} and `0.1`, in two of three comparisons.")
    assert not typed("A 3×3 in 4 segments with {{ 1.5 }} and `0.1`, in two of three comparisons.")


@pytest.mark.parametrize(
    "bench", [op, train, sweep, networks, engine], ids=["op", "train", "sweep", "models", "engine"]
)
def test_the_table_of_a_bench_is_that_of_its_measurements(bench, request):
    folder = ROOT / "results/bench"
    table = pd.read_csv(folder / "amd-epyc" / f"{request.node.callspec.id}.csv")
    assert bench.as_markdown(table) in (folder / "README.md").read_text()
