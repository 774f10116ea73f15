"""The HTML page in a real browser: two widths, both themes, without scripts, printed; and what its drawings say."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import harness
import pytest
from browser import PROGRAM, Browser

from precaudit.model.picture import Histogram, Mark, Phase, Picture, RanksHeld, Timeline
from precaudit.model.wire import Held, Report, RoleSummary
from precaudit.report import render
from precaudit.report.page.memory import sizes
from precaudit.report.page.values import range_of
from tests.report import samples

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
SHOWN = ("page-1200-light.png", "page-420-dark.png")
"""Pictures that the documentation shows; written with `--update-gold`."""
SECTIONS = ["roles", "findings", "updates", "values", "timeline", "memory", "modules", "not-observed"]
IDS = "[...document.querySelectorAll('main section')].map(s => s.id)"
browsing = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")


@cache
def traced() -> Report:
    return harness.trace(ROOT / "fixtures" / "scripts" / "gpt_bf16_adamw.py")


@cache
def exact() -> Report:
    report = harness.run(ROOT / "fixtures" / "PA101" / "bad.py", traced=True, exact=True).report
    assert report is not None
    return report


def full() -> Report:
    """A report with something in every section, and names that mean harm."""
    report = samples.trace()
    evil = samples.HOSTILE
    report.inventory = [
        Held(name=f"blocks.*.{evil}", tensors=3, dtypes={"weight": ["bfloat16"], evil: [evil]}, bytes={"weight": 96}),
        Held(name="blocks.*.norm.weight", tensors=3, dtypes={"weight": ["float32"]}, bytes={"weight": 48}),
    ]
    histograms = [
        Histogram(what=what, dtype="float16", zeros=1, not_finite=1, lowest=-40, counts=[1] * 60)
        for what in ("weights", "gradients", evil)
    ]
    phases = [Phase(name=name, start=at, end=at + 1) for at, name in enumerate(("forward", "backward", evil))]
    marks = [
        Mark(at=0.5, what=what, source="float32", target=target, count=3)
        for what, target in (("cast", "bfloat16"), ("reduction", "float32"), (evil, evil))
    ]
    report.picture = Picture(
        histograms=histograms, loss_scale=1024.0, timeline=Timeline(step=2, seconds=3.0, phases=phases, marks=marks)
    )
    report.by_rank = [
        RanksHeld(ranks=[0, 1, 2, 5], roles={"loss": ["float32"], "gradient": [evil]}),
        RanksHeld(ranks=[3, 4], roles={"loss": ["bfloat16"]}),
    ]
    return report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def written(report: Report, folder: Path) -> Path:
    page = folder / "report.html"
    text = render(report, "html", root=ROOT).replace(f"{ROOT}/", "")  # a picture in docs/ names no machine's folders
    page.write_text(text, encoding="utf-8")
    return page


@browsing
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1200])
def test_the_page_fits_and_is_quiet_at_every_width_and_theme(
    browser: Browser, tmp_path: Path, update_gold: bool, width: int, theme: str
) -> None:
    for name, report in (("trace", traced()), ("exact", exact()), ("full", full())):
        page = written(report, tmp_path)
        assert page.stat().st_size < 500_000
        browser.show(page, width, theme)
        assert browser.said == []
        assert browser.ask("document.documentElement.scrollWidth") == width
        assert browser.ask(IDS)[-1] == "not-observed"
        dark = browser.ask("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark is (theme == "dark")
        if name == "trace":
            assert browser.ask(IDS) == SECTIONS
            picture = tmp_path / f"page-{width}-{theme}.png"
            browser.picture(picture, tallest=1800)
            assert picture.read_bytes().startswith(b"\x89PNG")
            if update_gold and picture.name in SHOWN:
                PICTURES.mkdir(exist_ok=True)
                shutil.copy(picture, PICTURES)


@browsing
def test_a_phone_shows_each_verdict_beside_the_dtypes(browser: Browser, tmp_path: Path) -> None:
    browser.show(written(traced(), tmp_path), 420)
    verdicts = "[...document.querySelectorAll('#roles td:last-child .badge')]"
    ends = browser.ask(f"{verdicts}.map(badge => badge.getBoundingClientRect().right)")
    assert ends
    assert max(ends) <= 420


@browsing
def test_no_drawing_is_cut_off_and_every_text_in_it_can_be_read(browser: Browser, tmp_path: Path) -> None:
    for width in (420, 1200):
        browser.show(written(traced(), tmp_path), width)
        boxes = browser.ask(
            "[...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().left,"
            "s.getBoundingClientRect().right, s.querySelector('text').getBoundingClientRect().height])"
        )
        assert len(boxes) >= 5
        assert all(left >= 0 and right <= width and height >= 9 for left, right, height in boxes)


@browsing
def test_the_budget_of_an_exact_step_can_be_read_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    browser.show(written(exact(), tmp_path), 420)
    assert "exact" in browser.ask(IDS)
    sizes = browser.ask(
        "[...document.querySelectorAll('#exact svg text')].map(t => t.getBoundingClientRect())"
        ".map(b => [b.left, b.right, b.height])"
    )
    assert len(sizes) > 8
    assert all(left >= 0 and right <= 420 and height >= 9 for left, right, height in sizes)


@browsing
def test_on_a_phone_all_three_sizes_of_a_role_are_seen(browser: Browser, tmp_path: Path) -> None:
    browser.show(written(traced(), tmp_path), 420)
    assert (
        browser.ask(
            "Math.max(...[...document.querySelectorAll('#memory td')].map(t => t.getBoundingClientRect().right))"
        )
        <= 420
    )


def test_the_header_says_what_mending_takes() -> None:
    assert "mending it takes +427 kB of memory" in text_of(traced())


@browsing
def test_a_cell_that_breaks_a_rule_leads_to_its_finding(browser: Browser, tmp_path: Path) -> None:
    browser.show(written(traced(), tmp_path))
    links = browser.ask("[...document.querySelectorAll('td.heat.violation a')].map(a => a.hash)")
    assert len(links) == 2
    assert browser.ask(f"document.querySelector('{links[0]} h3').textContent").endswith("missing-master-weights")


@browsing
def test_the_search_leaves_the_modules_that_have_all_words(browser: Browser, tmp_path: Path) -> None:
    browser.show(written(traced(), tmp_path))
    look = (
        "(() => {{ const f = document.getElementById('search'); f.value = '{}'; f.dispatchEvent(new Event('input'));"
        "return [...document.querySelectorAll('#modules li.leaf')].filter(l => l.checkVisibility()).length }})()"
    )
    rows = len(traced().inventory)
    assert browser.ask(look.format("norm bias bfloat16")) == sum(
        "norm" in row.name and "bias" in row.name for row in traced().inventory
    )
    assert browser.ask("document.getElementById('matches').textContent").endswith(f" of {rows}")
    assert browser.ask(look.format("")) == rows


@browsing
def test_the_page_says_the_same_without_scripts_and_on_paper(browser: Browser, tmp_path: Path) -> None:
    page = written(traced(), tmp_path)
    browser.show(page)
    texts = "[...document.querySelectorAll('main section h2')].map(h => h.textContent)"
    usual = browser.ask(texts)
    browser.show(page, scripts=False)
    assert browser.ask(texts) == usual
    assert not browser.ask("document.querySelector('.search').checkVisibility()")
    browser.show(page, media="print")
    assert browser.ask("document.querySelector('figure svg').checkVisibility()")
    assert not browser.ask("document.querySelector('nav').checkVisibility()")


@browsing
def test_no_name_from_outside_becomes_a_tag_or_runs(browser: Browser, tmp_path: Path) -> None:
    for scripts in (True, False):
        browser.show(written(full(), tmp_path), scripts=scripts)
        assert browser.said == []
        assert browser.ask("document.querySelectorAll('img').length") == 0
        assert browser.ask("document.querySelectorAll('script').length") == 1
        assert "onerror" in browser.ask("document.getElementById('modules').textContent")


def text_of(report: Report) -> str:
    return re.sub(r"<[^>]+>", " ", render(report, "html", root=ROOT))


def test_ranges_are_those_of_the_formats() -> None:
    """float16: half of 2**-24 rounds to zero, below 2**-14 digits are lost, 65504 lies below 2**16."""
    assert range_of("float16")[1:] == (-25, -14, 16)
    assert range_of("float8_e4m3fn")[1:] == (-10, -6, 9)
    assert range_of("bfloat16")[1:] == (-134, -126, 128)


def test_shares_count_what_a_format_would_lose_and_a_loss_scale_saves() -> None:
    one = Histogram(what="gradients", dtype="float32", zeros=10, not_finite=0, lowest=-30, counts=[25, 0, 0, 0, 0, 65])
    assert one.elements == 100
    assert (one.below(-25), one.below(-24), one.from_on(-25), one.from_on(0)) == (0.25, 0.90, 0.65, 0.0)
    report = samples.trace()
    report.picture = Picture(histograms=[one], loss_scale=1024.0)
    text = text_of(report)
    assert re.search(r"float16\s+25 %\s+65 %\s+0 %", text)
    assert re.search(r"float16 × 1,024\s+0 %\s+90 %\s+0 %", text)


def test_memory_is_counted_as_it_is_as_wanted_and_as_low_as_may_be() -> None:
    report = samples.clean("trace")
    report.roles = [
        RoleSummary(role="master_weight", dtype="bfloat16", tensors=2, bytes=200, verdict="violation"),
        RoleSummary(role="optimizer_state", dtype="uint8", tensors=2, bytes=100, verdict="allowed"),
        RoleSummary(role="activation", dtype="float32", tensors=2, bytes=400, verdict="ok"),
    ]
    assert [(one.now, one.wanted, one.lowest) for one in sizes(report)] == [
        (200, 400, 400),
        (100, 100, 100),
        (400, 400, 200),
    ]


def test_ranks_that_differ_stand_side_by_side() -> None:
    text = text_of(full())
    assert "ranks 0-2, 5" in text
    assert "ranks 3-4" in text
    assert "≠ differs" in text


def test_casts_of_a_step_are_counted_by_phase() -> None:
    text = text_of(full())
    assert re.search(r"▼\s+cast float32 → bfloat16\s+forward\s+3", text)
    assert re.search(r"◆\s+reduction float32\s+forward\s+3", text)
