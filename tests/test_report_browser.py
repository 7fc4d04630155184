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
from distributed.selection.filters import read_id_list
from distributed.storage.location import locate
from model.synthetic import Sample

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="no chromium on this machine")]


# Not among our dependencies: `npm install --no-save axe-core` puts it there.
AXE = Path(__file__).parent.parent / "node_modules" / "axe-core" / "axe.min.js"
FOLD = """(() => {
    const fold = document.getElementById('fold');
    fold.checked = %s;
    fold.dispatchEvent(new Event('change'));
})()"""


def press(page: Page, key: str, where: str) -> None:
    """Presses a key on the first element that a selector finds."""
    event = f"new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}})"
    page.evaluate(f'document.querySelector("{where}").dispatchEvent({event})')


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
    page.evaluate(FOLD % "false")
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
    page.evaluate(FOLD % "false")
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
    page.evaluate(FOLD % "false")
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
    page.evaluate(FOLD % "false")
    page.evaluate("document.querySelectorAll('.card .open')[1].click()")
    image = "document.querySelector('#close-up img')"
    assert page.evaluate(f"{image}.decode().then(() => {image}.naturalWidth)") == 400
    assert page.evaluate("document.getElementById('close-up').open") is True
    text = page.evaluate("document.getElementById('close-up-text').innerText")
    for words in ("s01", HOSTILE, "night", "expected PCK"):
        assert words in text
    press(page, "ArrowRight", "#close-up")
    press(page, "ArrowRight", "#close-up")
    press(page, "ArrowLeft", "#close-up")
    assert page.evaluate("document.querySelector('#close-up-text dd').textContent") == "3"
    page.evaluate("document.getElementById('close-up').close()")
    assert page.errors == []


def test_images_that_look_alike_share_a_card_that_unfolds(page: Page) -> None:
    page.evaluate(FOLD % "true")
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
    cards = page.evaluate("document.querySelectorAll('.card').length")
    assert cards == len(set(data["alike"])) < 20
    assert all(data["group"][first] == data["group"][index] for index, first in enumerate(data["alike"]))
    assert page.evaluate("document.getElementById('shown').textContent") == f"20 of 20 images on {cards} cards"
    hidden = page.evaluate("Number(document.querySelector('.alike').textContent.match(/[0-9]+/)[0])")
    page.evaluate("document.querySelector('.alike').click()")
    assert page.evaluate("document.querySelectorAll('.card').length") == cards + hidden
    page.evaluate("document.querySelector('.alike').click()")
    assert page.evaluate("document.querySelectorAll('.card').length") == cards
    assert page.errors == []


def test_cards_are_sorted_and_the_arrow_keys_go_from_one_to_the_next(page: Page) -> None:
    page.evaluate(FOLD % "false")
    page.evaluate("Object.assign(document.getElementById('sort'), {value: 'group'}).dispatchEvent(new Event('change'))")
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
    shown = page.evaluate("[...document.querySelectorAll('.card')].map(card => Number(card.dataset.index))")
    assert shown == sorted(range(20), key=lambda index: (data["groups"][data["group"][index]], index))
    page.evaluate("document.querySelector('.open').focus()")
    press(page, "ArrowRight", ".open")
    assert page.evaluate("[...document.querySelectorAll('.open')].indexOf(document.activeElement)") == 1
    page.evaluate("document.getElementById('filters').reset()")
    page.evaluate("new Promise(done => setTimeout(done))")
    assert page.evaluate("document.querySelector('.card').title") == f"s00{HOSTILE}"
    assert page.errors == []


def test_what_is_ticked_off_is_not_among_the_ids_to_download(page: Page, tmp_path: Path) -> None:
    page.evaluate(FOLD % "false")
    page.evaluate("document.querySelectorAll('.card input')[0].click()")
    page.evaluate("document.querySelectorAll('.open')[2].focus()")
    press(page, "x", "[data-index='2'] .open")
    assert page.evaluate("document.getElementById('kept').textContent") == "2 ticked off"
    page.evaluate("URL.createObjectURL = (blob) => { window.made = blob; return '#'; }")
    page.evaluate("document.getElementById('download').click()")
    (tmp_path / "kept.csv").write_text(page.evaluate("window.made.text()"), newline="")
    ids = page.evaluate("JSON.parse(document.getElementById('data').textContent).ids")
    found = read_id_list(locate(str(tmp_path / "kept.csv"))).rows["sample_id"].to_pylist()
    assert found == [each for index, each in enumerate(ids) if index not in (0, 2)]
    page.evaluate("document.getElementById('keep-all').click()")
    assert page.evaluate("document.querySelectorAll('.dropped').length") == 0
    assert page.errors == []


def test_filters_that_leave_nothing_say_so(page: Page) -> None:
    page.evaluate(
        "Object.assign(document.getElementById('filter-group'), {value: 'nobody'}).dispatchEvent(new Event('input'))"
    )
    assert "No image passes" in page.evaluate("document.getElementById('nothing').innerText")
    page.evaluate("document.getElementById('show-all').click()")
    page.evaluate("new Promise(done => setTimeout(done))")
    assert page.evaluate("document.getElementById('nothing').checkVisibility()") is False
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: npm install --no-save axe-core")
def test_axe_finds_nothing_wide_or_narrow_light_or_dark(page: Page, scheme: str) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.evaluate(AXE.read_text(encoding="utf-8") + ";0")
    for width in (1280, 360):
        page.resize(width, 900)
        found = "axe.run().then(found => found.violations.map(each => each.id + ': ' + each.nodes[0].html))"
        assert page.evaluate(found) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_and_texts_stand_out(page: Page, scheme: str) -> None:
    """Contrasts of WCAG 2.2: 4.5 for text (1.4.3), 3 for the edges of controls (1.4.11)."""
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    names = ["ink", "soft", "edge", "accent", "cool", "paper", "card", "well", "note", "chip", "chip-ink"]
    style = "getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
    colours = dict(zip(names, page.evaluate(f"{names}.map(name => {style})"), strict=True))
    pairs = [(text, behind) for text in ("ink", "soft", "accent", "cool") for behind in ("paper", "card")]
    for text, behind in [*pairs, ("ink", "well"), ("ink", "note"), ("chip-ink", "chip")]:
        assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for behind in ("paper", "card"):
        assert contrast(colours["edge"], colours[behind]) >= 3, behind


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, as #rrggbb or #rgb. Source: WCAG 2.2, relative luminance."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


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
