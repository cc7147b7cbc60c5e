import base64
import hashlib
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pypdf
import pytest
from markupsafe import escape

from spectrum import plots, stats
from spectrum.analysis.answer import answer, caveats
from spectrum.analysis.page import page_of, strips
from spectrum.analysis.report import judge, write_report
from spectrum.analysis.sentences import finding
from spectrum.analysis.summary import as_text, matrix, summary_table
from tests.analysis.test_plots import history, results
from tests.plans import plan_of

EVIL = """"'--></script><script>f()</script><img src=x onerror=f()>{{7*7}}"""


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.scripts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.scripts += [""] * (tag == "script")

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts[-1] += data


@pytest.fixture
def plan():
    return {
        "study": "made up--epochs-3",
        "file": "made up.toml",
        "overrides": {"epochs": 3, "flip": False},
        "imports": ["my_models"],
        "question": "What lies between?",
        "hash": "0123456789abcdef",
        "budget": {"match": "none"},
        "base": {"dataset": "digits", "epochs": 3, "flip": True, "widths": None, "seed": 0, "segments": 1},
        "varied": ["segments"],
        "points": [{}] * 8,
    }


def provenance(table):
    return table.assign(provenance=[{"torch": "2", "threads": 1}] * len(table), reason=None)


def test_the_table_has_a_row_a_run_and_mean_and_interval():
    table = summary_table(results())
    assert list(table["segments"]) == ["1", "2", "3", "per-channel"]
    assert table["accuracy"][0] == "90.25 ± 3.18"  # t(0.975, 1 df) · 0.005/√2 / √2 = 12.706 · 0.0025
    assert list(table.columns) == ["segments", "accuracy", "n", "params", "macs", "seconds"]


def test_one_seed_has_no_interval():
    assert summary_table(results(seed=[0]))["accuracy"][0] == "90.00"


@pytest.mark.medium
def test_a_page_is_self_contained_and_says_what_a_reader_must_know(tmp_path, plan):
    table = provenance(results())
    report = write_report(tmp_path, table, history(table), plan_of(plan))
    page = report.page.read_text()
    assert {path.name for path in report.figures} == {
        f"{stem}.{kind}" for stem in ("spectrum", "params", "macs", "learning") for kind in ("svg", "png")
    }
    tags = Tags(page).found
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object")]
    assert [attrs for tag, attrs in tags if tag == "script"] == [{}]  # the one that sorts
    assert all(attrs["src"].startswith("data:image/svg+xml;base64,") for tag, attrs in tags if tag == "img")
    assert len([tag for tag, _ in tags if tag == "img"]) == 4
    assert not re.findall(r"https?://", page)
    assert "spectrum run &#39;made up.toml&#39; --epochs 3 --no-flip --import my_models" in page
    assert "<dt>segments</dt>" not in page
    for said in (
        "What lies between?",
        "No budget is matched",
        "2 seeds per configuration are few",
        "90.25 ± 3.18",
        "epochs",
        "threads",
    ):
        assert said in page


@pytest.mark.medium
def test_the_design_says_what_varies_how_often_and_what_was_decided_before(tmp_path, plan):
    runs = [{"segments": s, "seed": seed} for s in (1, 2, 3, "per_channel") for seed in (0, 1)]
    plan["points"] = [{"point": run} for run in runs]
    plan["contrasts"] = [
        {"name": "2 against 1", "between": [{"segments": 2}, {"segments": 1}], "margin": 0.005, "factors": [],
         "notes": [], "confounded": False}
    ]  # fmt: skip
    plan["tuning"] = {
        "grid": {"lr": [0.1, 0.2]}, "networks": [], "choices": [], "points": [{"point": {"seed": 1000}}],
    }  # fmt: skip
    table = provenance(results())
    page = write_report(tmp_path, table, history(table), plan_of(plan)).page.read_text()
    for said in (
        "segments: 1 segment, 2 segments, 3 segments, per-channel",
        "<dt>seeds</dt><dd>0, 1</dd>",
        "8, each on the same images, batches and augmentation for one seed",
        "learning rates 0.1, 0.2; seeds 1000; the same for every configuration, on validation images only",
        "±0.50 (1 comparison)",
        "All 8 runs ended, and all count",
    ):
        assert said in page


@pytest.mark.medium
def test_seeds_that_a_contrast_leaves_out_are_named(tmp_path, plan):
    contrast = {"name": "2 against 1", "between": [{"segments": 2}, {"segments": 1}], "factors": [], "notes": []}
    plan |= {"contrasts": [contrast | {"confounded": False}], "points": [{}] * 12}
    table = provenance(results(seed=[0, 1, 2]))
    table.loc[(table["segments"] == 2) & (table["seed"] == 1), ["status", "test_accuracy"]] = ["failed", None]
    page = write_report(tmp_path, table, history(table), plan_of(plan)).page.read_text()
    assert "Left out of “2 segments − 1 segment”, for lack of a run on some side: seed 1." in page


@pytest.mark.medium
def test_what_has_not_run_yet_is_not_called_left_out(tmp_path, plan):
    contrast = {"name": "2 against 1", "between": [{"segments": 2}, {"segments": 1}], "factors": [], "notes": []}
    plan |= {"contrasts": [contrast | {"confounded": False}], "points": [{}] * 12}
    table = provenance(results(seed=[0, 1, 2])).drop(index=[4])
    page = write_report(tmp_path, table, history(table), plan_of(plan)).page.read_text()
    assert "Left out of" not in page
    assert "11 of 12 runs have finished; the numbers may still change." in page


@pytest.mark.medium
def test_a_study_whose_contrasts_have_no_run_yet_has_a_page_without_a_forest(tmp_path, plan):
    contrast = {"name": "8 against 1", "between": [{"segments": 8}, {"segments": 1}], "factors": [], "notes": []}
    plan["contrasts"] = [contrast | {"confounded": False}]
    table = provenance(results())
    report = write_report(tmp_path, table, history(table), plan_of(plan))
    assert report.sentences == ["8 segments vs 1 segment: no seed has a run on every side."]
    assert not (tmp_path / "figures/contrasts.svg").exists()


@pytest.mark.medium
def test_failures_and_divergences_are_listed(tmp_path, plan):
    table = provenance(results())
    table.loc[0, ["status", "test_accuracy", "reason"]] = ["failed", None, "the worker process died 3 times"]
    table.loc[1, ["status", "test_accuracy"]] = ["diverged", 0.1]
    page = write_report(tmp_path, table, history(table), plan_of(plan)).page.read_text()
    assert "the worker process died 3 times" in page
    assert "1 segment, seed 0" in page
    assert "scored at chance" in page
    assert "nan" not in re.sub(r'src="data:[^"]*"', "", page)
    assert summary_table(table)["diverged"].tolist() == [1, 0, 0, 0]


@pytest.mark.medium
def test_contrasts_are_said_drawn_and_warned_of(tmp_path, plan):
    fair = {
        "name": "4 & 1",
        "between": [{"segments": 2}, {"segments": 1}],
        "margin": 0.05,
        "factors": ["segments: 2 → 1"],
    }
    many = {"name": "many", "between": [{"segments": 3}, {"segments": 1}], "factors": ["one: a → b", "two: c → d"]}
    plan["contrasts"] = [fair | {"notes": [], "confounded": False}, many | {"notes": ["so it is"], "confounded": True}]
    table = provenance(results(seed=[0, 1, 2]))
    table["test_accuracy"] += [0.001 * (7 * number % 5) for number in range(len(table))]
    report = write_report(tmp_path, table, history(table), plan_of(plan))
    page = report.page.read_text()
    assert ["Confounded: the sides differ in several factors at once." in said for said in report.sentences] == [
        False,
        True,
    ]
    words = unescape(re.sub(r"</?strong>", "", page))
    assert all(said.partition(" To ")[0] in words for said in report.sentences)
    assert "<strong>1 segment is better by " in page
    assert "It changes segments: 2 → 1." in page
    assert "A difference cannot be attributed to any one of its 2 factors" in page
    assert "<li>one: a → b</li>" in page
    assert (tmp_path / "figures/contrasts.svg").exists()


def test_strips_are_on_one_axis_and_fill_it():
    table = budgets()
    sides = [{"segments": 2, "match": "params"}, {"segments": 1, "match": "params"}]
    asked = [
        {"name": "first", "between": sides, "margin": 0.2},
        {"name": "turned", "between": sides[::-1]},
        {"name": "none", "between": [{"segments": 64}, {"segments": 1}]},
    ]
    first, turned, none = strips(stats.contrasts(table, asked))
    assert none is None
    assert first["zero"] == turned["zero"] == pytest.approx(50)
    assert (first["from"], first["to"]) == (4, 96), "the margin is the widest"
    assert turned["from"] == turned["to"] == turned["zero"], "without a margin"
    assert turned["low"] - 50 == pytest.approx(50 - first["high"], abs=0.02)
    assert first["low"] < first["mean"] < first["high"]


def test_the_question_of_today_stands_above_and_that_of_the_plan_beside_the_design(plan):
    table, said = provenance(results()), plan_of(plan)

    def page(question):
        return page_of(table, said, summary_table(table), {}, judge(table, said), question)

    assert "<h1>What is between?</h1>" in page("What is between?")
    assert "<dt>question in the frozen plan</dt><dd>What lies between?</dd>" in page("What is between?")
    for same in (None, "What lies between?"):
        assert "<h1>What lies between?</h1>" in page(same)
        assert "in the frozen plan" not in page(same)


@pytest.mark.medium
def test_the_policy_comes_before_the_one_script_and_has_its_hash(tmp_path, plan):
    page = Tags(write_report(tmp_path, provenance(results()), history(results()), plan_of(plan)).page.read_text())
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    said = {"http-equiv": "Content-Security-Policy", "content": policy}
    tags = [tag for tag, _ in page.found]
    assert [attrs for _, attrs in page.found if "http-equiv" in attrs] == [said]
    assert page.found.index(("meta", said)) < min(tags.index(tag) for tag in ("script", "style", "img", "body"))
    assert tags.count("script") == 1
    assert not any(name.startswith("on") for _, attrs in page.found for name in attrs)
    ids = {attrs["id"] for _, attrs in page.found if "id" in attrs}
    links = [attrs["href"] for _, attrs in page.found if "href" in attrs]
    assert len(links) > 5
    assert all(link[0] == "#" and link[1:] in ids for link in links), "a link leads to a section of the page alone"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_click_on_a_title_sorts_the_table_and_no_other_script_runs(tmp_path, plan):
    table = provenance(results(segments=[1, 2, 10, "per_channel"]))
    page = write_report(tmp_path, table, history(table), plan_of(plan)).page.read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page).group()
    click = "<script>const t = document.querySelectorAll('th'); t[3].click(); document.title = 'ran'</script>"

    def first_cells(text):
        path = tmp_path / "test.html"
        path.write_text(text.replace("</body>", f"{click}</body>"))
        browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()]
        seen = subprocess.run(browser, capture_output=True, text=True, timeout=120, check=True).stdout
        return re.findall(r"<tr><td[^>]*>(.*?)</td>", seen.partition("<tbody>")[2].partition("</tbody>")[0]), seen

    order, seen = first_cells(page.replace(policy, ""))
    assert order == ["per-channel", "10", "2", "1"]  # by MACs, which are 100,000 over the segments
    assert 'aria-sort="ascending"' in seen
    order, seen = first_cells(page)  # the policy keeps out what was put in
    assert order == ["1", "2", "10", "per-channel"]
    assert "<title>ran</title>" not in seen


NARROW = """<!doctype html><meta charset="utf-8">
<iframe style="border: 0; width: 400px; height: 900px" srcdoc="{}"></iframe>
<script>addEventListener("load", () => {{
  const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement, found = []
  for (const one of inner.querySelectorAll("details")) one.open = true
  for (const one of inner.querySelectorAll("html, .wide, figure"))
    if (one.scrollWidth > one.clientWidth + 1) found.push(one.className + " " + one.scrollWidth)
  for (const one of inner.querySelectorAll(".comparisons td"))
    if (one.textContent && one.getBoundingClientRect().right > root.clientWidth) found.push(one.textContent)
  const seen = inner.querySelectorAll(".comparisons td, .matrix td, .sortable td").length
  document.title = seen + " cells at " + root.clientWidth + ": " + found.join("; ")
}})</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_on_a_narrow_screen_nothing_scrolls_sideways(tmp_path, plan):
    matches = ["none", "params", "macs", "step_time"]
    table = provenance(results(match=matches, seed=[0, 1, 2]))
    table["test_accuracy"] += np.random.default_rng(0).normal(0, 0.001, len(table))
    table.loc[0, ["status", "test_accuracy", "reason"]] = ["failed", None, "Sizes of tensors must match " * 9]
    sides = [{"segments": "per_channel", "match": "params"}, {"segments": 1, "match": "params"}]
    contrast = {"name": "ends", "between": sides, "margin": 0.005, "factors": [], "notes": [], "confounded": False}
    plan |= {"contrasts": [contrast], "points": [{}] * len(table)}
    text = write_report(tmp_path, table, history(table), plan_of(plan)).page.read_text()
    inner = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = tmp_path / "narrow.html"
    page.write_text(NARROW.format(escape(inner)))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    seen = subprocess.run([*browser, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    cells, said = re.search(r"<title>(\d+) cells at (400: .*?)</title>", seen).groups()
    assert said == "400: ", "what is wider than its box"
    assert int(cells) > 100


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_printed_page_loses_nothing(tmp_path, plan):
    table = provenance(results(activation=["none", "relu"], lr=[0.1, 0.2]))
    page = write_report(tmp_path, table, history(table), plan_of(plan)).page
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<img[^>]*>", "", page.read_text()))

    def printed(path):
        pdf = path.with_suffix(".pdf")
        subprocess.run([*browser, f"--print-to-pdf={pdf}", path.as_uri()], capture_output=True, timeout=120, check=True)
        return pypdf.PdfReader(pdf).pages

    sheets = printed(page)
    text = re.sub(r"\s+", " ", " ".join(sheet.extract_text() for sheet in sheets))
    columns, rows = as_text(summary_table(table))
    assert all(cell in text for line in (columns, *rows) for cell in line)
    assert all(
        heading in text
        for heading in ("Answer", "Caveats", "Design", "Results", "Settings that all runs share", "How to reproduce")
    )
    assert "Click a title" not in text
    lines = [
        sum(sheet.get_contents().get_data().count(b" l\n") for sheet in sheets) for sheets in (sheets, printed(bare))
    ]
    assert lines[0] > lines[1] + 400, "the figures, which are drawings, are printed, folded or not"


def test_a_study_with_no_finished_run_still_has_a_page(tmp_path, plan):
    table = provenance(results()).assign(status="failed", test_accuracy=None, val_accuracy=None, reason="no luck")
    report = write_report(tmp_path, table, history(table).iloc[:0], plan_of(plan))
    assert report.figures == []
    assert "no luck" in report.page.read_text()


def named(word, plan):
    """Rows, plan and search of a study in which all that people and files may name is called so."""
    table = provenance(results(activation=["none", word], seed=[0, 1, 2])).assign(study=word, dataset=word)
    table["test_accuracy"] += (table["activation"] == word) * (0.01 + 0.002 * (table["seed"] - 1))
    table["provenance"] = [{word: word, "lowerings": {word: word}}] * len(table)
    table.loc[[0], ["status", "test_accuracy", "reason"]] = ["failed", None, word]
    sides = [{"activation": word}, {"activation": "none"}]
    one = {"name": word, "between": sides, "factors": [f"activation: {word}"], "notes": [word], "confounded": False}
    two = one | {"factors": [f"activation: {word}", word], "across_factors": [word], "margin": 0.01}
    search = results(lr=[0.1, 0.2], activation=[word]).assign(dataset=word, weight_decay=0.0, chosen=True)
    choice = {"point": {"segments": 1, "activation": word}, "match": "none", "values": {word: 0.1}, "edges": [word]}
    plan |= dict.fromkeys(("study", "file", "question", "hash"), word)
    plan |= {"imports": [word], "overrides": {word: word}, "base": {word: word, "activation": word}}
    plan |= {"contrasts": [one, two | {"confounded": True}], "varied": ["segments", "activation", word]}
    plan |= {"points": [{"point": {"segments": 1, "activation": word, word: word, "seed": word}}] * len(table)}
    tuning = {"grid": {"lr": [0.1]}, "points": plan["points"], "choices": [choice | {"val_accuracy": 0.9}]}
    return table, plan | {"tuning": tuning}, search


def test_markup_in_names_stays_text(plan):
    texts = []
    for word in ("tame", EVIL):
        table, fields, _ = named(word, plan)
        said = plan_of(fields)
        texts.append(page_of(table, said, summary_table(table), {}, judge(table, said)))
    tame, evil = map(Tags, texts)
    assert [(tag, sorted(attrs)) for tag, attrs in tame.found] == [(tag, sorted(attrs)) for tag, attrs in evil.found]
    assert tame.scripts == evil.scripts
    assert texts[1].count(escape(EVIL)) == texts[0].count("tame") > 30
    assert EVIL not in texts[1]


@pytest.mark.medium
def test_markup_in_names_stays_text_in_pictures(tmp_path, plan):
    table, fields, search = named(EVIL, plan)
    said = plan_of(fields)
    report = write_report(tmp_path, table, history(table), said, search)
    assert [attrs for tag, attrs in Tags(report.page.read_text()).found if tag == "script"] == [{}]
    drawn = [path for path in report.figures if path.suffix == ".svg"]
    assert {path.stem for path in drawn} == {"spectrum", "params", "macs", "learning", "contrasts", "tuning"}
    for path in drawn:
        for element in ElementTree.parse(path).iter():
            assert element.tag.rpartition("}")[2] not in ("script", "img", "foreignObject", "a"), path.name
            attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
            assert not any(name.startswith("on") for name in attributes), path.name
            assert attributes.get("href", "#").startswith(("#", "data:image/png;base64,")), path.name


@pytest.mark.medium
@pytest.mark.parametrize("word", ["$x$", "$x^$"])
def test_a_dollar_in_a_name_is_no_mathematics(word, tmp_path):
    table = results(activation=["none", word]).assign(dataset=word)
    path, _ = plots.save_figure(plots.spectrum_curve(table), tmp_path / "curve")
    assert "Oblique" not in path.read_text()  # the letters of a formula


def budgets(**more):
    """A study of two budgets, three seeds."""
    table = provenance(results(match=["none", "params"], seed=[0, 1, 2]))
    table["test_accuracy"] += np.random.default_rng(0).normal(0, 0.001, len(table))
    widths = [
        (8 if match == "none" else 8 + params // 100,)
        for match, params in zip(table["match"], table["macs"], strict=True)
    ]
    return table.assign(widths=widths, **more)


def test_a_study_of_segments_and_one_setting_has_a_matrix():
    found = matrix(budgets())
    assert found.setting == "match"
    assert found.titles == ["width-matched", "parameter-matched"]
    assert [split for split, _ in found.rows] == ["1 segment", "2 segments", "3 segments", "per-channel"]
    table = budgets()
    one = table[(table["segments"] == 2) & (table["match"] == "params")]["test_accuracy"]
    mean, _, high = stats.t_interval(one)
    cell = found.rows[1][1][1]
    assert (cell.mean, cell.half) == (f"{100 * mean:.2f}", f"± {100 * (high - mean):.2f}")
    for column in range(2):
        means = [float(cells[column].mean) for _, cells in found.rows]
        assert [cells[column].highest for _, cells in found.rows] == [one == max(means) for one in means]


@pytest.mark.parametrize("more", [{}, {"activation": ["none", "relu"], "match": ["none", "params"]}])
def test_a_study_of_another_shape_has_no_matrix(more):
    assert matrix(provenance(results(**more))) is None


def test_an_answer_without_comparisons_is_the_highest_mean_and_the_possible_optima():
    table = provenance(results(seed=[0, 1, 2]))
    noise = np.random.default_rng(0).normal(0, 0.001, len(table))
    table["test_accuracy"] = 0.5 + 0.1 * (table["segments"] == 2) + noise
    highest, optima = answer(table, pd.DataFrame())
    assert re.fullmatch(r"Highest mean accuracy: 2 segments, 60\.\d\d% \(95% CI .* to .*; 3 seeds\)\.", highest)
    assert optima == "Possible optima (95% set of segments): 2."
    assert answer(table[table["seed"] == 0], pd.DataFrame())[1] == (
        "One seed per configuration: no difference can be told from chance."
    )
    assert answer(pd.DataFrame(), pd.DataFrame()) == ["Not answered yet: no final run has finished."]


def test_an_answer_is_the_first_comparison_and_how_many_show_what():
    sides = [{"segments": 2, "match": "params"}, {"segments": 1, "match": "params"}]
    asked = [{"name": name, "between": sides, "margin": 0.2} for name in ("first", "second")]
    judged = stats.contrasts(budgets(), asked)
    first, counts = answer(budgets(), judged)
    assert first == finding(judged.iloc[0])
    assert counts == "That is the first of 2 comparisons, of which 2 show a difference."
    one, alone = answer(budgets(), judged.iloc[:1])
    assert one == first
    assert alone.startswith("Highest mean accuracy: ")


def test_caveats_say_what_the_budgets_leave_free_and_what_is_missing(plan):
    said = caveats(budgets(), plan_of(plan | {"points": [{}] * 30}), pd.DataFrame())
    assert said == [
        "24 of 30 runs have finished; the numbers may still change.",
        "3 seeds per configuration are few: intervals are wide and say little about small differences.",
        "Where widths are matched, parameters and MACs vary between configurations. "
        "A difference in accuracy may be one of capacity.",
        "A budget is matched by changing the stage widths. A difference may therefore come from the width as well.",
    ]
