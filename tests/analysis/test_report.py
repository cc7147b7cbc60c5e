import re
import shutil
import subprocess
from html.parser import HTMLParser

import pypdf
import pytest

from spectrum.analysis.report import write_report
from spectrum.analysis.summary import as_text, summary_table
from tests.analysis.test_plots import history, results

EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


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


def test_the_table_has_a_row_a_point_and_mean_and_interval():
    table = summary_table(results())
    assert list(table["segments"]) == ["1", "2", "3", "per channel"]
    assert table["accuracy"][0] == "90.25 ± 3.18"  # t(0.975, 1 df) · 0.005/√2 / √2 = 12.706 · 0.0025
    assert list(table.columns) == ["segments", "n", "params", "macs", "accuracy", "seconds"]


def test_one_seed_has_no_interval():
    assert summary_table(results(seed=[0]))["accuracy"][0] == "90.00"


def test_a_page_is_self_contained_and_says_what_a_reader_must_know(tmp_path, plan):
    table = provenance(results())
    report = write_report(tmp_path, table, history(table), plan)
    page = report.page.read_text()
    assert {path.name for path in report.figures} == {
        f"{stem}.{kind}" for stem in ("spectrum", "params", "macs", "learning") for kind in ("svg", "png")
    }
    tags = Tags(page).found
    assert not [tag for tag, _ in tags if tag in ("link", "iframe", "object")]
    assert [attrs for tag, attrs in tags if tag == "script"] == [{}]  # the one that sorts
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in tags if tag == "img")
    assert len([tag for tag, _ in tags if tag == "img"]) == 4
    assert not re.findall(r"https?://", page)
    assert "spectrum run &#39;made up.toml&#39; --epochs 3 --no-flip --import my_models" in page
    assert "<dt>segments</dt>" not in page
    for said in ("What lies between?", "unmatched", "2 seeds a point are few", "90.25 ± 3.18", "epochs", "threads"):
        assert said in page


def test_the_design_says_what_varies_how_often_and_what_was_decided_before(tmp_path, plan):
    points = [{"segments": s, "seed": seed} for s in (1, 2, 3, "per_channel") for seed in (0, 1)]
    plan["points"] = [{"point": point} for point in points]
    plan["contrasts"] = [
        {"name": "2 against 1", "between": [{"segments": 2}, {"segments": 1}], "margin": 0.005, "factors": [],
         "notes": [], "confounded": False}
    ]  # fmt: skip
    plan["tuning"] = {
        "grid": {"lr": [0.1, 0.2]}, "networks": [], "choices": [], "points": [{"point": {"seed": 1000}}],
    }  # fmt: skip
    table = provenance(results())
    page = write_report(tmp_path, table, history(table), plan).page.read_text()
    for said in (
        "segments: 1, 2, 3, per channel",
        "<dt>seeds</dt><dd>0, 1</dd>",
        "8, each on the same images, batches and augmentation for one seed",
        "learning rates 0.1, 0.2; seeds 1000; the same at every point, on validation images only",
        "±0.50 (2 against 1)",
        "all 8 runs ended, and all count",
    ):
        assert said in page


def test_seeds_that_a_contrast_leaves_out_are_named(tmp_path, plan):
    contrast = {"name": "2 against 1", "between": [{"segments": 2}, {"segments": 1}], "factors": [], "notes": []}
    plan |= {"contrasts": [contrast | {"confounded": False}], "points": [{}] * 12}
    table = provenance(results(seed=[0, 1, 2]))
    table.loc[(table["segments"] == 2) & (table["seed"] == 1), ["status", "test_accuracy"]] = ["failed", None]
    page = write_report(tmp_path, table, history(table), plan).page.read_text()
    assert "Left out of “2 against 1”, for want of a run on some side: seed 1." in page


def test_what_has_not_run_yet_is_not_called_left_out(tmp_path, plan):
    contrast = {"name": "2 against 1", "between": [{"segments": 2}, {"segments": 1}], "factors": [], "notes": []}
    plan |= {"contrasts": [contrast | {"confounded": False}], "points": [{}] * 12}
    table = provenance(results(seed=[0, 1, 2])).drop(index=[4])
    page = write_report(tmp_path, table, history(table), plan).page.read_text()
    assert "Left out of" not in page
    assert "of 12 planned runs 11 are there" in page


def test_a_study_whose_contrasts_have_no_run_yet_has_a_page_without_a_forest(tmp_path, plan):
    contrast = {"name": "8 against 1", "between": [{"segments": 8}, {"segments": 1}], "factors": [], "notes": []}
    plan["contrasts"] = [contrast | {"confounded": False}]
    table = provenance(results())
    report = write_report(tmp_path, table, history(table), plan)
    assert report.sentences == ["8 against 1: no seed has a run on every side."]
    assert not (tmp_path / "figures/contrasts.svg").exists()


def test_failures_and_divergences_are_listed(tmp_path, plan):
    table = provenance(results())
    table.loc[0, ["status", "test_accuracy", "reason"]] = ["failed", None, "the worker process died 3 times"]
    table.loc[1, ["status", "test_accuracy"]] = ["diverged", 0.1]
    page = write_report(tmp_path, table, history(table), plan).page.read_text()
    assert "the worker process died 3 times" in page
    assert "1, seed 0" in page
    assert "scored at chance" in page
    assert "nan" not in re.sub(r'src="data:[^"]*"', "", page)
    assert summary_table(table)["diverged"].tolist() == [1, 0, 0, 0]


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
    report = write_report(tmp_path, table, history(table), plan)
    page = report.page.read_text()
    assert ["Confounded: it changes several factors at once." in said for said in report.sentences] == [False, True]
    assert report.sentences[0].replace("&", "&amp;").replace("'", "&#39;") in page
    assert "It changes segments: 2 → 1." in page
    assert "A difference cannot be laid to any one of its 2 factors" in page
    assert "<li>one: a → b</li>" in page
    assert (tmp_path / "figures/contrasts.svg").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_click_on_a_title_sorts_the_table_and_no_other_script_runs(tmp_path, plan):
    table = provenance(results(segments=[1, 2, 10, "per_channel"]))
    page = write_report(tmp_path, table, history(table), plan).page.read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page).group()
    click = "<script>const t = document.querySelectorAll('th'); t[3].click(); document.title = 'ran'</script>"

    def first_cells(text):
        path = tmp_path / "test.html"
        path.write_text(text.replace("</body>", f"{click}</body>"))
        browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()]
        seen = subprocess.run(browser, capture_output=True, text=True, timeout=120, check=True).stdout
        return re.findall(r"<tr><td>(.*?)</td>", seen.partition("<tbody>")[2].partition("</tbody>")[0]), seen

    order, seen = first_cells(page.replace(policy, ""))
    assert order == ["per channel", "10", "2", "1"]  # by MACs, which are 100,000 over the segments
    assert 'aria-sort="ascending"' in seen
    order, seen = first_cells(page)  # the policy keeps out what was put in
    assert order == ["1", "2", "10", "per channel"]
    assert "<title>ran</title>" not in seen


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_printed_page_loses_nothing(tmp_path, plan):
    table = provenance(results(activation=["none", "relu"], lr=[0.1, 0.2]))
    page = write_report(tmp_path, table, history(table), plan).page
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    pdf = tmp_path / "page.pdf"
    subprocess.run([*browser, f"--print-to-pdf={pdf}", page.as_uri()], capture_output=True, timeout=120, check=True)
    sheets = pypdf.PdfReader(pdf).pages
    text = re.sub(r"\s+", " ", " ".join(sheet.extract_text() for sheet in sheets))
    columns, rows = as_text(summary_table(table))
    assert all(cell in text for line in (columns, *rows) for cell in line)
    assert all(heading in text for heading in ("Design", "Results", "What was held equal", "How to reproduce"))
    assert "Click a title" not in text
    assert sum(len(sheet.images) for sheet in sheets) == 4


def test_a_study_with_no_finished_point_still_has_a_page(tmp_path, plan):
    table = provenance(results()).assign(status="failed", test_accuracy=None, val_accuracy=None, reason="no luck")
    report = write_report(tmp_path, table, history(table).iloc[:0], plan)
    assert report.figures == []
    assert "no luck" in report.page.read_text()


def test_markup_in_names_stays_text(tmp_path, plan):
    table = provenance(results()).assign(dataset=EVIL, status="failed", reason=EVIL)
    plan |= {"study": EVIL, "question": EVIL, "base": {EVIL: EVIL}}
    page = write_report(tmp_path, table, history(table), plan).page.read_text()
    tags = Tags(page).found
    assert [attrs for tag, attrs in tags if tag == "script"] == [{}]
    assert EVIL not in page
    assert all("onerror" not in attrs for _, attrs in tags)
