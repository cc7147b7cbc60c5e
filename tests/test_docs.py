"""The documentation: statements of its pages that a test can check, and a site that builds strictly and fetches
nothing."""

import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import spectrum
from spectrum import build_model, models
from spectrum.cli import main
from spectrum.cost import budget, speed
from spectrum.data.teacher import noise_ceiling
from spectrum.design import own_data
from spectrum.design.study_file import Budget, parse_study
from spectrum.models.families import FAMILIES
from tests.registries import restored

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] not in ("_build", "results")]
FETCHED = re.compile(
    r"""<(?:script|link|img|iframe|source|object|embed)\b[^>]*\s(?:src|href|data)=["'](?:https?:)?//"""
)


@pytest.fixture
def repository(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import repository

    return repository


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import reference

    return reference


@pytest.fixture
def records(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import records

    return records


def blocks(page, language):
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def toml_blocks():
    return [pytest.param(text, id=f"{page.stem}-{n}") for page in PAGES for n, text in enumerate(blocks(page, "toml"))]


@pytest.mark.parametrize("text", toml_blocks())
def test_what_is_shown_of_a_study_can_be_in_one(text, tmp_path, monkeypatch):
    said = tomllib.loads(text)
    named = said.get("import", [])
    modules = [named] if isinstance(named, str) else named
    for name in modules:  # which a page shows
        shown = [text for page in PAGES for text in blocks(page, "python")]
        (module,) = [text for text in shown if text.startswith(f"# {name}.py\n")]
        (tmp_path / f"{name}.py").write_text(module)
        restored(monkeypatch, FAMILIES)
        restored(monkeypatch, own_data.DATASETS)
        monkeypatch.setattr(sys, "path", [*sys.path])
    if "seed" in said:  # a line of [axes]
        said = {"axes": said}
    if "contrasts" in said and "axes" not in said:  # the contrast alone
        sides = [side for one in said["contrasts"] for side in (*one["between"], *one.get("across", ()))]
        names = dict.fromkeys(option for side in sides for option in side)
        said["axes"] = {name: list(dict.fromkeys(side[name] for side in sides if name in side)) for name in names}
    assert parse_study(said, "shown", folder=tmp_path).runs()
    for name in modules:
        sys.modules.pop(name, None)


def test_the_model_of_ones_own_is_built_at_the_widths_that_it_tells():
    (text,) = [text for text in blocks(DOCS / "howto/own_model.md", "python") if "register_model" in text]
    exec(text, {})
    try:
        model = build_model("plain", segments=4, width=0.5, image_size=28)
        assert model(torch.randn(2, 3, 28, 28)).shape == (2, 10)
        narrow = models.NetworkOptions(segments=4, width=0.5)
        assert models.stage_widths("plain", narrow) == (16, 32, 64)
    finally:
        del FAMILIES._entries["plain"]


def test_the_tutorial_shows_the_study_that_it_runs():
    assert (ROOT / "experiments/quickstart.toml").read_text() in blocks(DOCS / "tutorial.md", "toml")


def quoted(page, command):
    """What a page shows of a command's output, without lines of times and what stands for more."""
    block = next(text for text in blocks(page, "console") if text.startswith(f"$ {command}\n"))
    return [line for line in block.splitlines()[1:] if line and line != "…" and " about " not in line]


def test_the_tutorial_shows_what_plan_prints(tmp_path, monkeypatch, capsys):
    studies = {"experiments/quickstart.toml": (ROOT / "experiments/quickstart.toml").read_text()}
    (studies["two_ends.toml"],) = [text for text in blocks(DOCS / "tutorial.md", "toml") if "between" in text]
    monkeypatch.chdir(tmp_path)
    for name, text in studies.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        assert main(["plan", name]) == 0
        printed = [re.sub(r" +[\d.]+ *$", "", line).rstrip() for line in capsys.readouterr().out.splitlines()]
        for line in quoted(DOCS / "tutorial.md", f"spectrum plan {name}"):
            assert re.sub(r" +[\d.]+ *$", "", line).rstrip() in printed, "without the seconds of a run"


def test_the_tutorial_says_the_same_of_its_runs_throughout():
    text = (DOCS / "tutorial.md").read_text()
    mean, low, high = re.search(r"better by ([\d.]+) pp \(95% CI ([\d.]+) to ([\d.]+)", text).groups()
    assert f"\n+{mean} pp, {low} to {high}\n" in text
    table = quoted(DOCS / "tutorial.md", "spectrum run experiments/quickstart.toml")
    found = {line.split()[0]: line.split()[1:4] for line in table if " ± " in line and line[0] in "p1234568"}
    frame = re.findall(r"^\d +(\w+) +3 +([\d.]+) +([\d.]+) +([\d.]+) +\d+$", text, re.MULTILINE)
    assert len(frame) == len(found) == 7
    for segments, *values in frame:
        mean, low, high = (100 * float(value) for value in values)
        shown, sign, half = found[segments.replace("_", "-")]
        assert sign == "±"
        assert (float(shown), float(half)) == pytest.approx((mean, mean - low), abs=0.011)
        assert high == pytest.approx(min(100, mean + float(half)), abs=0.011)


def test_tolerances_that_pages_state_are_those_of_the_code():
    pages = [(DOCS / f"{name}.md").read_text() for name in ("fairness", "howto/equal_budgets")]
    fairness, recipe = (" ".join(page.split()) for page in pages)
    assert f"match within {budget.COUNT_BOUND:.0%}, and within {budget.COUNT_AIM:.1%} where" in fairness
    assert f"**Step time** matches within {budget.TIME_BOUND:.0%}" in fairness
    assert inspect.signature(speed.step_time_ratio).parameters["rounds"].default == 9
    assert "take turns for nine rounds" in fairness
    assert f"{noise_ceiling(0.1, 10):.0%} for 0.1 and ten" in fairness
    assert f"match within {budget.COUNT_BOUND:.0%}, step times within {budget.TIME_BOUND:.0%}" in recipe


def test_pages_have_no_machine_paths_and_nothing_to_be_filled_in():
    for page in PAGES:
        assert not re.search(r"/work/|/home/|/tmp/|@@|TODO", page.read_text()), page


def test_links_lead_to_pages_where_there_are_some(repository):
    def shown(text):
        return repository.with_site_links(text, "docs/explanation/spectrum.md", "explanation/spectrum.md")

    assert shown("[a](../../results/teacher_pilot)") == "[a](../results/teacher_pilot/README.md)"
    assert shown("[a](../fairness.md#budgets)") == "[a](../fairness.md#budgets)"
    assert shown("![a](../../results/bench/roofline.png)") == "![a](../results/bench/roofline.png)"
    assert shown("[a study](../../experiments/teacher.toml)") == "a study (`experiments/teacher.toml`)"
    assert shown("[LICENSE](../../LICENSE)") == "`LICENSE`"
    assert shown("[a](https://arxiv.org/abs/1610.02357)") == "[a](https://arxiv.org/abs/1610.02357)"
    assert shown("```\n[a](../../LICENSE)\n```") == "```\n[a](../../LICENSE)\n```"


def test_what_only_the_site_needs_is_hidden_on_a_code_host(repository):
    assert repository.with_directives("a\n<!-- {toctree}\n:hidden:\n\nb\n-->\nc\n") == (
        "a\n```{toctree}\n:hidden:\n\nb\n```\nc\n"
    )
    assert repository.with_directives("<!-- {studies} map -->\n") == "```{studies} map\n\n```\n"
    assert repository.with_directives("[a](../A.md) <!-- included -->\n") == "```{include} ../A.md\n```\n"
    assert repository.with_directives("> [!NOTE]\n> a\n> b\n\n> c\n") == "```{note}\na\nb\n```\n\n> c\n"
    for plain in ("<!-- findings: make readmes -->\n", "[a](b.md) and c\n", "> quoted\n"):
        assert repository.with_directives(plain) == plain
    shown = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("```{")]
    assert not shown, "a code host shows a directive as it is written"


def test_a_light_picture_has_a_dark_twin(repository):
    shown = "![a](x_light.svg){.only-light}![a](x_dark.svg){.only-dark}"
    assert repository.with_dark_twins("![a](x_light.svg)") == shown
    assert repository.with_dark_twins("![a](x.svg)") == "![a](x.svg)"
    for light in DOCS.glob("_figures/*_light.svg"):
        assert light.with_name(light.name.replace("_light", "_dark")).exists(), light.name


def test_a_study_is_told_by_its_question_and_how_its_answer_begins(reference):
    page = "# T\n\n**Question.** Why?\n\n**Answer.** Yes. It is [so](a.md),\nby 1.5 pp. More.\n"
    assert reference.question_of("no such study", page) == "Why?"
    assert reference.answer_of(page) == "Yes. It is so, by 1.5 pp."
    assert reference.answer_of("# T\n\nThe finding stands first, in plain words. Then more.\n") == (
        "The finding stands first, in plain words."
    )


def test_every_page_of_results_is_in_one_group_and_the_map_comes_in_its_order(repository):
    groups = [repository.studies_of(group) for group in ("map", "others", "speed")]
    listed = [name for names in groups for name in names]
    assert sorted(listed) == sorted(readme.parent.name for readme in ROOT.glob("results/*/README.md"))
    assert groups[0] == [name for name in repository.GROUPS["map"] if name in listed]
    assert groups[2] == ["bench"]


def test_tables_of_records_say_types_defaults_and_bounds(records):
    rows = {row.name: row for row in records.rows_of(spectrum.RunConfig)}
    assert list(rows) == list(spectrum.RunConfig.model_fields)
    assert rows["train_images"][1:3] == ("int ≥ 1", "not set")
    assert rows["segments"].kind == 'int or "per_channel"'
    assert rows["weight_decay"].default == "0.0005"
    assert rows["widths"].kind == "list of int ≥ 1, ≤ 16777216"
    assert {name for name, row in rows.items() if row.default == "the architecture's own"} == {
        "order",
        "activation",
        "norm",
    }
    assert [name for name, _ in records.groups_of(spectrum.RunConfig)] == ["data", "network", "training"]
    assert records.rows_of(Budget)[0].default == '["none"]'
    width = records.rows_of(models.NetworkOptions, ["width"])
    assert width == [("width", "float > 0, ≤ 64", "1", "Factor that multiplies the architecture's stage widths.")]


def test_the_pages_of_the_reference_are_what_the_code_says(reference):
    for page, text in reference.pages():
        assert page.read_text() == text, f"{page.name} is stale; write it anew: python docs/_ext/reference.py"


def test_every_public_name_has_an_entry_in_the_reference(reference):
    public = [f"spectrum.{name}" for name in set(spectrum.__all__) - {"__version__", "plots", "stats"}]
    public += [
        f"spectrum.{module}.{name}" for module in ("plots", "stats") for name in getattr(spectrum, module).__all__
    ]
    assert set(public) <= set(reference.entries())


def test_an_entry_has_a_signature_a_table_of_parameters_and_links(reference):
    (page,) = [text for page, text in reference.pages() if page.name == "statistics.md"]
    entry = page.split('<a id="spectrum.stats.contrasts"></a>')[1].split("<a id=")[0]
    signature = "stats.contrasts( results, asked, *, plan=None, metric=None, alpha=0.05, power=0.8, ) -> DataFrame"
    assert signature in " ".join(entry.split())
    assert "| `metric` | `str \\| None` | `None` |" in entry
    assert "| `results` | `DataFrame` | required | From [`load_results`](results.md#load_results). |" in entry
    known = reference.entries()
    assert known["spectrum.stats.Difference"].anchor == "statsdifference"
    assert known["spectrum.stats.difference"].anchor == "statsdifference-1", (
        "as GitHub numbers what differs in case only"
    )


def test_a_docstring_falls_into_its_opening_its_arguments_and_the_rest(reference):
    said = reference.sections("Do it\nnow.\n\nMore.\n\nArgs:\n    x: one\n        or two.\n    y: another.\n\nLast.")
    assert said == ("Do it now.", [("x", "one or two."), ("y", "another.")], "More.\n\nLast.")


def test_every_flag_of_a_command_is_in_its_table(reference):
    page = (DOCS / "reference/commands.md").read_text()
    for command in ("plan", "run", "status", "doctor", "report", "export", "audit", "bench"):
        words = [sys.executable, "-m", "spectrum", command, "--help"]
        said = subprocess.run(words, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=True)
        flags = set(re.findall(r"^│ .*?(--[a-z-]+)", said.stdout, re.MULTILINE)) - {"--help"}
        section = page.split(f"## `spectrum {command}`\n")[1].split("\n## ")[0]
        shared = page.split("## Flags of a configuration")[1] if command in ("plan", "run") else ""
        assert not {flag for flag in flags if f"`{flag}`" not in section + shared}, command


def build_site(folder):
    """The site, built strictly; `make test` builds it before and says where."""
    built = folder / "html"
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees")]
    done = subprocess.run([*words, str(DOCS), str(built)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


@pytest.mark.medium
def test_the_site_builds_strictly_names_every_command_and_fetches_nothing(tmp_path):
    built = ROOT / os.environ["SPECTRUM_SITE"] if "SPECTRUM_SITE" in os.environ else build_site(tmp_path)

    commands = (built / "reference/commands.html").read_text()
    known = subprocess.run([sys.executable, "-m", "spectrum", "--help"], env={**os.environ, "NO_COLOR": "1"},
                           capture_output=True, text=True, check=True).stdout  # fmt: skip
    names = set(re.findall(r"^usage: spectrum.*\{(.*?)\}", known)[0].split(","))
    assert names >= {"plan", "run", "status", "report", "export", "audit", "bench"}
    assert names == set(
        re.findall(r'<h2><code[^>]*><span class="pre">spectrum</span> <span class="pre">([a-z]+)', commands)
    )
    assert "\x1b" not in commands

    documented = "".join(page.read_text() for page in built.glob("reference/*.html"))
    for name in set(spectrum.__all__) - {"__version__", "plots", "stats"}:
        assert f'id="spectrum.{name}"' in documented, name
    for module in ("plots", "stats"):
        for name in getattr(spectrum, module).__all__:
            assert f'id="spectrum.{module}.{name}"' in documented, name

    for page in built.rglob("*.html"):
        assert not FETCHED.search(page.read_text()), page
    for sheet in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text()), sheet

    assert len(list(built.glob("notebooks/*.html"))) == len(list(ROOT.glob("notebooks/*.ipynb")))
    assert len(list(built.glob("results/*/README.html"))) == len(list(ROOT.glob("results/*/README.md")))


def test_the_comparison_of_the_recipe_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    from spectrum.cli import main

    page = DOCS / "howto" / "compare_runs.md"
    (tmp_path / "runs.csv").write_text(re.search(r"<!-- runs -->\n```\n(.*?)```", page.read_text(), re.DOTALL)[1])
    monkeypatch.chdir(tmp_path)
    command, shown = blocks(page, "console")[0].split("\n", 1)
    assert main(command.removeprefix("$ spectrum ").split()) == 0
    assert capsys.readouterr().out.split() == shown.split()


def test_the_tracker_of_the_recipe_writes_a_line_per_epoch(tmp_path, monkeypatch):
    (text,) = blocks(DOCS / "howto/track_runs.md", "python")
    (tmp_path / "tracked.py").write_text(text)
    (tmp_path / "tiny.toml").write_text(
        '[base]\ndataset = "digits"\ntrain_images = 100\nbatch_size = 50\nepochs = 3\nwidth = 0.25\n'
    )
    asked = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    said = [subprocess.run([sys.executable, "tracked.py"], **asked) for _ in range(2)]
    assert [one.stdout for one in said] == ["0 runs had ended before\n", "1 runs had ended before\n"], said
    lines = (tmp_path / "results/tiny/curves.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in lines] == ["1", "2", "3"]
