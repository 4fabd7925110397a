"""The report is a self-contained page that agrees with the results."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from finegates.suite.claims import Evidence, audit, load_ledger
from finegates.suite.figures import draw_tradeoff, save_figure, tradeoff_frame
from finegates.suite.report import ReportError, build_report
from finegates.suite.runs.record import write_record
from finegates.suite.tables import glue_table, runs_table, to_csv, write_table
from support.records import make_record, make_study

METHODS, TASKS = ("full", "gates"), ("cola", "rte")


def results(folder: Path, records) -> Path:
    """The folder of a tier with records, tables, a figure, and its report."""
    tables = [folder / "tables" / f"glue.{suffix}" for suffix in ("csv", "md", "tex")]
    write_table(glue_table(records, METHODS, TASKS), *tables)
    (folder / "tables" / "runs.csv").write_text(to_csv(runs_table(records, METHODS, TASKS)))
    for record in records:
        name = f"runs/{record.task}/{record.method}/seed{record.seed}.json"
        write_record(record, folder / name)
    frame = tradeoff_frame(records, METHODS, TASKS)
    save_figure(draw_tradeoff(frame), folder / "figures" / "tradeoff.svg")
    audited = audit(load_ledger(), Evidence(folder))
    (folder / "report.html").write_text(build_report(folder, records, audited), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return results(tmp_path_factory.mktemp("tier"), make_study(seeds=(0, 1)))


class Links(HTMLParser):
    """The links of a page, the resources that it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "a":
            self.links.append(given["href"])
        elif given.get("src") or given.get("href"):
            self.loaded.append(given.get("src") or given["href"])
        if given.get("id"):
            assert given["id"] not in self.anchors, f"{given['id']} appears twice"
            self.anchors.add(given["id"])


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(folder):
    page = Links((folder / "report.html").read_text())
    assert len(page.links) > 20
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.anchors
        else:
            assert (folder / link).exists(), link
    assert all(source.startswith("data:") for source in page.loaded)


def test_the_page_holds_verdicts_scores_figures_and_runs(folder):
    text = (folder / "report.html").read_text()
    for claim in load_ledger():
        assert f'id="claim-{claim.id}"' in text
    assert "data:image/svg+xml;base64," in text
    assert text.count("runs/cola/gates/seed") >= 2
    assert "not testable at this tier" in text
    assert "Matthews correlation" in text


def test_the_summary_is_short(folder):
    text = (folder / "report.html").read_text()
    summary = text.split('id="summary"')[1].split("</ul>")[0]
    assert 3 <= summary.count("<li>") <= 10
    assert "8 runs: 2 methods on 2 tasks, 2 seeds" in summary


def test_the_same_results_give_the_same_page(folder):
    records = make_study(seeds=(0, 1))
    audited = audit(load_ledger(), Evidence(folder))
    assert build_report(folder, records, audited) == (folder / "report.html").read_text()


def test_text_from_records_is_no_markup(tmp_path):
    title = "<script>alert(1)</script>"
    records = [
        make_record(task=task, method=method, title=title if method == "gates" else None)
        for task in TASKS
        for method in METHODS
    ]
    text = (results(tmp_path, records) / "report.html").read_text()
    assert title not in text
    assert "&lt;script&gt;alert(1)" in text


def test_synthetic_data_are_said_to_be(tmp_path):
    records = [
        make_record(task=task, method=method, source="generated")
        for task in TASKS
        for method in METHODS
    ]
    audited = audit(load_ledger(), Evidence(tmp_path))
    assert "All data are synthetic" in build_report(tmp_path, records, audited)


def test_a_tier_without_records_has_no_report(tmp_path):
    with pytest.raises(ReportError, match="at least one run record"):
        build_report(tmp_path, [], [])


@pytest.mark.browser
def test_a_browser_shows_sorts_and_opens_the_page_without_a_complaint(folder):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next((p for p in map(Path, ("/usr/bin/chromium",)) if p.exists()), None)
    if chromium is None:
        pytest.skip("no /usr/bin/chromium")
    complaints, requests = [], []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((folder / "report.html").as_uri())
        table = page.locator("table", has_text="Every run; its record").first
        head = table.get_by_role("button", name="Last")

        def scores() -> list[float]:
            return [
                float(text) for text in table.locator("tbody td:nth-child(3)").all_inner_texts()
            ]

        head.focus()
        page.keyboard.press("Enter")
        assert scores() == sorted(scores())
        head.click()
        assert scores() == sorted(scores(), reverse=True)
        details = page.locator("#claim-binary")
        assert not details.evaluate("element => element.open")
        page.get_by_role("link", name="binary").first.click()
        assert details.evaluate("element => element.open")
        page.set_viewport_size({"width": 380, "height": 800})
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 380, "the page itself does not scroll sideways on a phone"
        browser.close()
    assert not complaints
    outside = [u for u in requests if not re.match(r"(file|data):", u)]
    assert not outside
