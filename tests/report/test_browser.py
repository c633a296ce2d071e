"""The page in a real browser: no error, no request, and what can be clicked works. Skipped without a Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lmm_forget.report.sample_pictures import write_sample_pictures
from lmm_forget.report.sweep_report import load_sweep_report
from lmm_forget.report.sweep_summary import write_sweep_summary
from lmm_forget.tasks.task import Sample
from tests.report.browser import Browser, chromium
from tests.report.conftest import SUITE, TARGETS, make_results, put_job

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium (Debian: apt install chromium)")


class Pictures:
    """Samples with a picture of their own."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, place: int) -> Sample:
        picture = Image.new("RGB", (400, 200), (place * 6, 90, 120))
        return Sample(f"test-{place}", f"image-{place // 2}", (picture,), "?", ("x",))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("multirun") / "demo"
    for recipe, loss in (("llm", 0.15), ("sa_proj", 0.05)):
        results = make_results(recipe, loss=loss, job=recipe)
        folder = put_job(root, results=results)
        values: dict[str, dict[str, list[float]]] = {task: {} for task in (*TARGETS, *SUITE)}
        for row in results["answers"]:
            values[row["task"]].setdefault(row["sample_id"], []).append(row["value"])
        write_sample_pictures(folder, values, dict.fromkeys(values, Pictures()))  # type: ignore[arg-type]
    put_job(root, "vision", status={"state": "failed", "error": "out of memory"})
    write_sweep_summary(load_sweep_report(root))
    return root


@pytest.fixture(scope="module")
def page(sweep: Path) -> Iterator[Browser]:
    with Browser() as browser:
        browser.open(sweep / "summary.html")
        yield browser


def test_it_opens_without_a_word_and_without_the_network(page: Browser, sweep: Path) -> None:
    page.run("new Promise(done => setTimeout(done, 100))")
    assert page.messages == []
    # the icon's data: URL is no request over a network
    assert [url for url in page.requests if not url.startswith("data:")] == [(sweep / "summary.html").as_uri()]
    assert page.run("document.querySelector('#missing').textContent.includes('1 of 3 jobs has no results (1 failed)')")


def cards(page: Browser) -> list[dict[str, Any]]:
    return list(
        page.run(
            """[...document.querySelectorAll('.card')].map(card => ({
                about: card.querySelector('.about').textContent,
                terms: [...card.querySelectorAll('dt')].map(each => each.textContent),
                answers: [...card.querySelectorAll('dd')].map(each => each.textContent),
                drawn: card.querySelector('img') ? card.querySelector('img').naturalWidth : 0}))"""
        )
    )


def choose(page: Browser, name: str, value: str) -> None:
    script = f"(f => {{ f.value = {value!r}; f.dispatchEvent(new Event('change')); return f.value; }})"
    assert page.run(f"{script}(document.getElementById('filter-{name}'))") == value


def test_samples_can_be_filtered(page: Browser, sweep: Path) -> None:
    page.wait("[...document.querySelectorAll('.card img')].every(image => image.complete)")
    first = cards(page)
    assert len(first) == 12 and all(card["drawn"] == 288 for card in first)  # 400 pixels wide, made smaller
    assert all(card["answers"][1].startswith("✓") and card["answers"][2].startswith("✗") for card in first)
    choose(page, "task", "tiny_chartqa")
    assert {card["about"].split(" ")[0] for card in cards(page)} == {"chartqa"}
    choose(page, "way", "right")
    assert all(card["answers"][1].startswith("✗") and card["answers"][2].startswith("✓") for card in cards(page))
    choose(page, "way", "")
    choose(page, "stage", "2")
    assert all(card["terms"][2] == "stage 2" for card in cards(page))
    choose(page, "task", "")
    wanted = cards(page)[3]["about"].split("· ")[1]
    page.run(
        f"(f => {{ f.value = '{wanted}'; f.dispatchEvent(new Event('input')); }})"
        "(document.getElementById('filter-text'))"
    )
    found = cards(page)
    assert found and all(wanted in card["about"] + "".join(card["answers"]) for card in found)
    page.run("document.getElementById('filter-text').value = ''")
    choose(page, "job", "1")
    assert "kept samples shown" in page.run("document.getElementById('sample-count').textContent")
    before = len(cards(page))
    page.run("document.getElementById('more').click()")
    assert len(cards(page)) > before == 12
    assert page.messages == []


def hover(page: Browser, place: list[float], condition: str) -> None:
    """Move the mouse there until the condition holds: a scroll that is still under way takes a tip away again."""
    for turn in range(100):
        page.point_at(place[0] + turn % 2, place[1])
        page.run("new Promise(done => setTimeout(done, 100))")
        if page.run(condition):
            return
    raise TimeoutError(condition)


def test_tips_show_the_numbers(page: Browser) -> None:
    place = page.run(
        """(() => { const cell = document.querySelector('.heat td'); cell.scrollIntoView({block: 'center'});
           const box = cell.getBoundingClientRect();
           return [box.x + box.width / 2, box.y + 8, cell.dataset.tip]; })()"""
    )
    hover(page, place, "!document.getElementById('tip').hidden")
    assert page.run("document.getElementById('tip').textContent") == place[2]
    assert "since the base" in place[2]
    box = page.run("(b => [b.left, b.right, b.top, b.bottom])(document.getElementById('tip').getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= 1200 and 0 <= box[2] < box[3] <= 900
    place = page.run(
        """(() => { const mark = document.querySelector('figure svg .tip use, figure svg .tip path');
           mark.scrollIntoView({block: 'center'}); const box = mark.getBoundingClientRect();
           return [box.x + box.width / 2, box.y + box.height / 2]; })()"""
    )
    hover(page, place, "document.getElementById('tip').textContent.includes('held-out')")
    assert "learning +" in page.run("document.getElementById('tip').textContent")


def test_it_fits_a_phone(sweep: Path) -> None:
    with Browser(390, 844, dark=True) as browser:
        browser.open(sweep / "summary.html")
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
        assert browser.messages == []


def test_it_prints(page: Browser, sweep: Path, tmp_path: Path) -> None:
    with Browser(718, 1000) as paper:  # the width between the margins of A4
        paper.send("Emulation.setEmulatedMedia", media="print")
        paper.open(sweep / "summary.html")
        cut = "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth).length"
        assert paper.run(cut) == 0  # nothing a reader would have to scroll to
    page.pdf(tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF") and content.count(b"/Type /Page\n") + content.count(b"/Type /Page/") >= 2
