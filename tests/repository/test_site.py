"""The documentation site: pages from published files and docstrings, pictures, and the build."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import how_it_works
import module_pages
import published_results
import pytest
import repository_pages
import score_against_macs

import finegates as fg
from support.paths import ROOT

DOCS = ROOT / "docs"
PUBLISHED = ROOT / "results" / "published"
PICTURES = [how_it_works.PICTURE, score_against_macs.PICTURE]
TIERS = published_results.tiers()
CELL = re.compile(r"([\d.]+) ± ([\d.]+)")


def unlinked(text: str) -> str:
    """The words of a text without links and code."""
    text = re.sub(r'<a href="[^"]*">([^<]*)</a>', r"\1", text)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, published_results.Page]:
    target = tmp_path_factory.mktemp("docs") / "published"
    found = published_results.pages(PUBLISHED, target)
    return {page.path.relative_to(target).as_posix(): page for page in found}


def test_every_published_table_is_a_page_with_its_caption(pages):
    tables = sorted(PUBLISHED.rglob("*.md"))
    assert len(tables) >= 30
    for table in tables:
        page = pages[table.relative_to(PUBLISHED).as_posix()]
        text = table.read_text()
        rows = [line for line in text.splitlines() if line.startswith("|")]
        paragraphs = [line for line in text.splitlines() if line and line[0] not in "|#"]
        shown = unlinked(page.body)
        assert [line for line in [*rows, *paragraphs] if unlinked(line) not in shown] == [], table
        assert page.title


def test_every_published_figure_is_on_exactly_one_page(pages):
    shown = [
        (page.path.parent / figure).resolve()
        for page in pages.values()
        for figure in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.body)
    ]
    assert sorted(shown) == sorted(PUBLISHED.rglob("*.svg"))


def test_links_of_published_texts_lead_to_published_files(pages):
    page = pages["local/claims_evidence.md"]
    links = re.findall(r'href="([^"]+)"', page.body)
    assert "llama/tables/task.csv" in links
    assert [link for link in links if not (PUBLISHED / "local" / link).is_file()] == []


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_the_page_of_a_tier_lists_all_its_pages_and_its_report(tier, tmp_path):
    written = published_results.write_pages(PUBLISHED, tmp_path)
    index = (tmp_path / tier.name / "index.md").read_text()
    listed = re.findall(r"^.+ <([\w/.-]+)>$", index, re.MULTILINE)
    own = [page.path for page in written if page.path.is_relative_to(tmp_path / tier.name)]
    names = {path.relative_to(tmp_path / tier.name).with_suffix("").as_posix() for path in own}
    assert set(listed) == names - {"index"}
    assert len(listed) == len(set(listed))
    assert 'href="report.html"' in index


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_the_report_of_a_published_tier_is_built_from_published_files_alone(tier, tmp_path):
    published_results.write_report(tier, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    claims = (tier / "claims.csv").read_text().splitlines()[1:]
    assert len(claims) > 20
    assert [line for line in claims if line.partition(",")[0] not in text] == []
    for run in sorted((tier / "runs").rglob("seed*.json")):
        assert run.relative_to(tier).as_posix() in text


def test_links_to_files_of_the_repository_lead_to_the_page_that_shows_them(tmp_path):
    page = DOCS / "results.md"
    text = (
        "[a](../README.md) [b](../theory/README.md#setting) [c](lora.md) [d](https://x.org) "
        "[e](../config/local.yaml) ![f](../results/published/local/figures/tradeoff.svg)\n"
        "```python\nx = y[0](z)\n```\n"
    )
    assert repository_pages.with_links(text, DOCS, page) == (
        "[a](index.md) [b](theory.md#setting) [c](lora.md) [d](https://x.org) "
        "e (`config/local.yaml`) ![f](../results/published/local/figures/tradeoff.svg)\n"
        "```python\nx = y[0](z)\n```\n"
    )


def test_the_first_page_of_the_site_is_the_readme():
    page = DOCS / "index.md"
    text = repository_pages.page_text(page.read_text(), page)
    readme = (ROOT / "README.md").read_text()
    assert text.startswith("# finegates\n")
    assert "(docs/" not in text
    assert readme.splitlines()[-1] in text


def test_signs_of_mathematics_in_docstrings_are_no_markup():
    assert module_pages.plain("|mean P - s| of z_, ``|x_|``") == r"\|mean P - s\| of z\_, ``|x_|``"


def test_the_public_names_are_defined_in_modules_that_have_pages():
    names = module_pages.modules()
    assert {getattr(fg, n).__module__ for n in fg.__all__ if n != "__version__"} <= set(names)
    assert not [name for name in names if "._" in name]


def test_the_numbers_of_the_picture_are_those_of_the_published_table():
    lines = (PUBLISHED / "structured" / "tables" / "glue.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    titles = {"SST-2": "sst2", "MRPC": "mrpc", "QNLI": "qnli"}
    by_title = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    frame = score_against_macs.points()
    printed = {
        "full": "Full fine-tuning",
        "reference": "Gates (reference), s = 0.4",
        "gates-lora": "Gates (reference) + LoRA, s = 0.4",
        "structured": "Shared gates, same MACs",
        "structured-lora": "Shared gates + LoRA, same MACs",
    }
    assert len(frame) == len(titles) * len(printed)
    for method, title in printed.items():
        row = by_title[title]
        points = frame[frame["method"] == method].set_index("task")
        for task, name in titles.items():
            score, half = map(float, CELL.fullmatch(row[task]).groups())
            point = points.loc[name]
            assert f"{point['score']:.1f}" == f"{score:.1f}"
            assert (point["high"] - point["low"]) / 2 == pytest.approx(half, abs=0.051)
        assert points["macs_kept"].mean() == pytest.approx(float(row["MACs kept (%)"]), abs=0.051)
        assert (points["seeds"] == int(row["Seeds"])).all()


def test_the_pictures_are_drawn_from_todays_tables():
    numbers = score_against_macs.PICTURE.with_suffix(".csv").read_text()
    assert numbers == score_against_macs.csv(score_against_macs.points()), "run: make pictures"
    digest = hashlib.sha256(numbers.encode()).hexdigest()
    assert digest in score_against_macs.PICTURE.read_text(), "run: make pictures"
    assert how_it_works.PICTURE.read_text() == how_it_works.picture(), "run: make pictures"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_pictures_are_small_and_bring_their_background(picture):
    text = picture.read_text()
    assert len(text) < 150_000
    assert re.search(r"fill[:=]\s*\"?#ffffff", text, re.IGNORECASE)


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_can_be_searched(tmp_path):
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    pytest.importorskip("furo", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    site = tmp_path / "html"
    api = (site / "api.html").read_text()
    names = [name for name in fg.__all__ if name != "__version__"]
    assert [name for name in names if f'id="finegates.{name}"' not in api] == []
    assert "compaction" in (site / "searchindex.js").read_text()
    for tier in TIERS:
        assert (site / "published" / tier.name / "report.html").is_file()
        assert (site / "published" / tier.name / "tables" / "glue.csv").is_file()
    broken = [
        (page.name, link)
        for page in sorted(site.glob("*.html"))
        for link in re.findall(r'href="([^"#:?]+)[#?"]', page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []
