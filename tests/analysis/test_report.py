import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from spectrum.analysis.report import summary_table, write_report
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


def test_failures_and_divergences_are_listed(tmp_path, plan):
    table = provenance(results())
    table.loc[0, ["status", "test_accuracy", "reason"]] = ["failed", None, "the worker process died 3 times"]
    table.loc[1, ["status", "test_accuracy"]] = ["diverged", 0.1]
    page = write_report(tmp_path, table, history(table), plan).page.read_text()
    assert "the worker process died 3 times" in page
    assert "1, seed 0" in page
    assert "scored at chance" in page
    assert "nan" not in page
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
    assert "It is confounded" in page
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
