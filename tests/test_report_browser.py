"""The report in a real browser: it renders without an error, nothing of the data runs, the filter works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Page, browsing, find_browser
from picked import make_bundle, make_pool, publish
from test_report import HOSTILE, NUM_ROWS, pool_rows

from distributed.reporting.report import write_report
from distributed.runs.progress import silent
from model.synthetic import Sample

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def report(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 20 images."""
    folder = tmp_path_factory.mktemp("picked")
    make_pool(folder, pool_rows(samples))
    make_bundle(folder / "model")
    write_report(publish(folder, budget=20), out=str(folder / "report.html"), progress=silent)
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        page.resize(1280, 900)
        page.open(report)
        yield page


def test_it_renders_without_an_error_and_nothing_of_the_data_runs(page: Page) -> None:
    assert page.evaluate("document.title").startswith("Selection of ")
    assert page.evaluate("document.querySelectorAll('.card').length") == 20
    page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    assert page.evaluate("[...document.querySelectorAll('.card img')].map(image => image.naturalWidth)") == [128] * 20
    assert page.evaluate("document.querySelectorAll('.card svg path.halo').length") == 20
    assert page.evaluate("[...document.querySelectorAll('.card')].map(c => c.title)[0]") == f"s00{HOSTILE}"
    assert page.errors == []


def test_the_policy_stops_what_would_get_into_the_page(report: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    changed.write_text(report.read_text().replace("</main>", "<script>document.title='taken'</script></main>"))
    with browsing(tmp_path / "profile") as page:
        page.open(changed)
        assert page.evaluate("document.title").startswith("Selection of ")
        assert any("Content Security Policy" in error for error in page.errors)


def test_the_filters_show_what_they_say(page: Page) -> None:
    shown = "[...document.querySelectorAll('.card')].map(c => Number(c.title.slice(1, 3)))"
    choose = """(() => {
        const select = [...document.querySelectorAll('select')].find(s => s.dataset.column === '%s');
        select.value = [...select.options].find(o => o.text === '%s').value;
        select.dispatchEvent(new Event('change'));
    })()"""
    page.evaluate(choose % ("light", "night"))
    assert page.evaluate(shown) == [i for i in range(20) if i % 3 == 1]
    page.evaluate(choose % ("camera", "front"))
    assert page.evaluate(shown) == [i for i in range(20) if i % 3 == 1 and i % 2 == 0]
    page.evaluate("document.getElementById('filters').reset()")
    page.evaluate("new Promise(done => setTimeout(done))")
    assert len(page.evaluate(shown)) == 20
    group = """(() => {
        const box = document.getElementById('filter-group');
        box.value = %s;
        box.dispatchEvent(new Event('input'));
    })()"""
    page.evaluate(group % "[...document.querySelectorAll('#groups option')][1].value")
    assert page.evaluate(shown) == list(range(8, 16))
    assert page.evaluate("document.getElementById('shown').textContent") == "8 of 20 images"
    page.evaluate(group % "''")
    assert page.errors == []


def test_a_card_opens_large_and_names_everything(page: Page) -> None:
    page.evaluate("document.querySelectorAll('.card')[1].click()")
    assert page.evaluate("document.getElementById('close-up').open") is True
    text = page.evaluate("document.getElementById('close-up-text').innerText")
    for words in ("s01", HOSTILE, "night", "expected PCK"):
        assert words in text
    page.evaluate("document.getElementById('close-up').close()")
    assert page.errors == []


def test_more_than_a_page_is_shown_when_asked_for(page: Page) -> None:
    assert page.evaluate("document.getElementById('more-row').hidden") is True
    assert NUM_ROWS > 20


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_wider_than_the_window_and_the_picture_is_not_blank(page: Page, width: int) -> None:
    page.resize(width, 800)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape[1] == width
    assert picture.std() > 10
    assert page.errors == []
