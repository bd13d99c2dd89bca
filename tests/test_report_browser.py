"""The report in a real Chromium: filters, keys, deep links, hostile texts, no request, narrow screens."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from paired import made_up, run_of, turn
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from factory.pair import pair_id
from factory.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium with chromedriver here (Debian: apt install chromium chromium-driver)"
)
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
]
HOSTILE = [
    "<script>window.fired = 1</script>",
    "</script><script>window.fired = 2</script>",
    '<img src="x" onerror="window.fired = 3">',
    "<svg onload=window.fired=4><style>@import 'http://127.0.0.1:9/a.css'</style>",
    "{{ constructor.constructor('window.fired = 5')() }} ${window.fired = 6}",
    "<!--<script> javascript:window.fired=7 \" ' ` onfocus=window.fired=8 autofocus",
    '<iframe srcdoc="<script>parent.fired=9</script>"></iframe><meta http-equiv=refresh content=0;url=http://127.0.0.1:9>',
    "<link rel=preload href=http://127.0.0.1:9/x as=image><base href=http://127.0.0.1:9>",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    folder = tempfile.mkdtemp()
    for option in [*OPTIONS, f"--user-data-dir={folder}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return made_up(40, ["refine", "prefix", "nparam"])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> str:
    return f"file://{write_report(run_of(tmp_path_factory.mktemp('report') / 'run', rows))}"


class Page:
    """The report as a reader handles it."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get_log("browser"), driver.get_log("performance")
        driver.get("about:blank")  # a change of the fragment alone would not load the page again
        driver.get(url)

    def __call__(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def choose(self, control: str, value: str) -> None:
        for option in Select(self(f"#f-{control}")).options:  # selenium's own selector cannot quote every value
            if option.get_attribute("value") == value:
                option.click()
        deadline = time.monotonic() + 5  # Chromium tells the page of a choice a moment later
        while f"{control}=" not in self.hash and value != "length":
            assert time.monotonic() < deadline, f"choosing {control} changed nothing"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        self("body").send_keys(*keys)

    @property
    def count(self) -> str:
        return self("#count").text

    @property
    def pair(self) -> str:
        return self("#pair .id").text

    @property
    def hash(self) -> str:
        return str(self.driver.execute_script("return location.hash"))

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)


@pytest.fixture
def page(browser: webdriver.Chrome, file: str) -> Page:
    return Page(browser, file)


def number(rows: list[dict[str, Any]], wanted: Callable[[dict[str, Any]], Any]) -> int:
    return sum(bool(wanted(row)) for row in rows)


def first(n: int) -> str:
    return f"1 of {n} pairs"


def test_page_loads_without_a_request_or_a_violation(page: Page, file: str) -> None:
    page.press("j", "?", Keys.ESCAPE, "d")
    time.sleep(0.5)  # what would be loaded late
    messages = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url.partition("#")[0] for url in asked} <= {file, "about:blank"} and file in asked
    assert page.driver.get_log("browser") == []


def test_filters_by_strategy_status_and_reason_count_what_is_there(page: Page, rows: list[dict[str, Any]]) -> None:
    assert page.count == first(120)
    page.choose("strategy", "refine")
    assert page.count == first(40)
    page.choose("status", "rejected")
    assert page.count == first(number(rows, lambda r: r["strategy"] == "refine" and r["status"] == "rejected"))
    page.choose("reason", "leak")
    assert page.count == first(number(rows, lambda r: r["strategy"] == "refine" and r["reason"] == "leak"))
    assert page("#pair .chip").text == "rejected: leak"
    assert page("#count").get_attribute("aria-live") == "polite"
    pair = page.pair
    page("#clear").click()
    assert page.count.endswith(" of 120 pairs") and page.pair == pair, "the pair that is read stays"


def test_filter_by_text_finds_prompts_answers_and_ids(page: Page, rows: list[dict[str, Any]]) -> None:
    page("#f-text").send_keys("SUBJECT 7.")
    assert page.count == first(3)
    assert "subject 7." in page("#pair .prompt").text
    page("#f-text").clear()
    page("#f-text").send_keys(rows[5]["pair_id"])
    assert page.count == first(1) and page.pair == rows[5]["pair_id"]
    page("#f-text").clear()
    page("#f-text").send_keys("no such words anywhere")
    assert page.count == "No pair matches" and "No pair matches" in page("#pair").text
    assert not page("#next").is_enabled() and not page("#previous").is_enabled()


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("length", lambda r: r["chosen_tokens"] - r["rejected_tokens"]),
        ("margin", lambda r: r["margin"]),
        ("reward", lambda r: r["reward_chosen"] - r["reward_rejected"]),
    ],
)
def test_filter_by_score_takes_the_range_and_leaves_out_what_has_none(
    page: Page, rows: list[dict[str, Any]], name: str, score: Callable[[dict[str, Any]], float]
) -> None:
    scored = [row for row in rows if row["status"] != "failed"]
    page.choose("score", name)
    assert page.count == first(120)
    page("#f-min").send_keys("0.5")
    assert page.count == first(number(scored, lambda r: score(r) >= 0.5))
    page("#f-max").send_keys("2")
    assert page.count == first(number(scored, lambda r: 0.5 <= score(r) <= 2))


def test_keys_go_to_the_next_and_previous_pair_and_leave_typing_alone(page: Page) -> None:
    start = page.pair
    page.press("j")
    second = page.pair
    assert second != start and page.count == "2 of 120 pairs"
    page.press(Keys.ARROW_RIGHT)
    assert page.count == "3 of 120 pairs"
    page.press("k")
    assert page.pair == second
    page.press(Keys.ARROW_LEFT)
    assert page.pair == start and not page("#previous").is_enabled()
    page.press("k")
    assert page.count == first(120)
    page.press("/")
    assert page.run("return document.activeElement.id") == "f-text"
    page("#f-text").send_keys("jk?d/")
    assert page("#f-text").get_attribute("value") == "jk?d/" and not page("#help").is_displayed()


def test_keys_are_explained_by_a_question_mark(page: Page) -> None:
    page.press("?")
    assert page("#help").is_displayed() and "next pair" in page("#help").text
    page.press(Keys.ESCAPE)
    assert not page("#help").is_displayed()


def test_buttons_and_list_lead_to_pairs(page: Page) -> None:
    page("#next").click()
    assert page.count == "2 of 120 pairs"
    page.all("#list button")[4].click()
    assert page.count == "5 of 120 pairs"
    assert page("#list [aria-current]").text.split()[0] == page("#pair h3").text.split()[0]


def test_deep_link_shows_its_pair_and_filters_and_follows_them(
    browser: webdriver.Chrome, file: str, page: Page
) -> None:
    page.choose("strategy", "refine")
    page.choose("status", "kept")
    page("#f-text").send_keys("mill")
    page.press(Keys.TAB)
    page.run("document.activeElement.blur()")
    page.press("j", "j")
    link, pair, count = page.hash, page.pair, page.count
    assert f"pair={pair}" in link and "strategy=refine" in link and "status=kept" in link and "q=mill" in link
    again = Page(browser, file + link)
    assert (again.pair, again.count) == (pair, count)
    assert again("#f-text").get_attribute("value") == "mill"


def test_deep_link_in_the_open_page_filters_by_a_reason_of_the_flow(page: Page, rows: list[dict[str, Any]]) -> None:
    page("#flow a.chip[href*='strategy=prefix'][href*='reason=leak']").click()
    assert page.count == first(number(rows, lambda r: r["strategy"] == "prefix" and r["reason"] == "leak"))
    assert page("#pair h3").text.startswith("prefix")


def test_deep_link_to_what_is_not_there_says_so(
    browser: webdriver.Chrome, file: str, rows: list[dict[str, Any]]
) -> None:
    page = Page(browser, f"{file}#pair=0123456789&strategy={quote('<img src=x onerror=window.fired=1>')}")
    assert "0123456789 is not in this report" in page("#pair [role=alert]").text
    assert page.count == "No pair matches"
    assert page.run("return window.fired") is None
    kept = next(row for row in rows if row["status"] == "kept")
    page = Page(browser, f"{file}#pair={kept['pair_id']}&status=rejected")
    assert "is hidden by these filters" in page("#pair [role=alert]").text


def test_link_to_a_section_stays_one(browser: webdriver.Chrome, file: str) -> None:
    page = Page(browser, f"{file}#length")
    assert page.count == first(120) and page.run("return scrollY") > 500


def test_differences_are_marked_word_by_word(browser: webdriver.Chrome, tmp_path: Path) -> None:
    rows = made_up(2, ["refine"])
    rows[0].update(status="kept", reason=None, chosen_tokens=9, rejected_tokens=9)
    rows[0]["chosen"] = turn("assistant", "The river Rhine runs north, to the sea.\n\nIt is long.")
    rows[0]["rejected"] = turn("assistant", "The river Elbe runs north, to a lake.\n\nIt is long.")
    page = Page(browser, f"file://{write_report(run_of(tmp_path / 'run', rows))}#pair={rows[0]['pair_id']}")
    assert [m.text for m in page.all(".chosen mark")] == ["Rhine", "the sea"]
    assert [m.text for m in page.all(".rejected mark")] == ["Elbe", "a lake"]
    assert page.run("return document.querySelector('.chosen .text').textContent") == rows[0]["chosen"][0]["content"]
    page.press("d")
    assert not page.all("mark") and page("#diff").is_selected() is False
    page.press("d")
    assert len(page.all("mark")) == 4


def test_hostile_texts_are_shown_as_they_are_and_do_nothing(browser: webdriver.Chrome, tmp_path: Path) -> None:
    rows = made_up(len(HOSTILE), ["refine"])
    for row, text in zip(rows, HOSTILE, strict=True):
        row.update(
            dict.fromkeys(("level", "split", "chosen_variant", "rejected_variant", "judge", "judge_reason"), text)
        )
        row.update(status="rejected", reason=text, chosen_tokens=3, rejected_tokens=3, margin=0.1)
        row["prompt"] = [*turn(text, text), *turn("user", text)]
        row["chosen"], row["rejected"] = turn(text, f"{text} chosen"), turn("assistant", f"{text} rejected")
        row["pair_id"] = pair_id(text, "refine")
    run = run_of(tmp_path / "run", rows)
    run.update(versions={text: text for text in HOSTILE}, created=HOSTILE[0])
    page = Page(browser, f"file://{write_report(run)}")
    for _ in rows:
        for key in ("d", "d", "j"):
            page.press(key)
    for row, text in zip(rows, HOSTILE, strict=True):
        page.run(f"location.hash = '#pair={row['pair_id']}'")
        time.sleep(0.05)
        assert page("#pair h3 .chip").text == f"rejected: {text}"
        shown = page.run("return [...document.querySelectorAll('#pair .text')].map((e) => e.textContent)")
        assert shown == [text, text, f"{text} chosen", f"{text} rejected", text]
        assert page("#pair dl").text.count(text) == 3 and page("#pair .side.chosen h4").text.count(text) == 1
        page.choose("reason", text)
        assert page.count == first(1)
        page("#clear").click()
    assert page.run("return window.fired") is None
    assert (
        page.run("return document.querySelectorAll('#viewer :is(img, script, iframe, svg, base, link, meta)').length")
        == 0
    )
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "about:")) for url in asked)
    assert browser.get_log("browser") == [], "something tried and was refused by the policy"


def test_policy_refuses_what_would_get_past_the_escaping(page: Page) -> None:
    """The second line of defence, tried from inside."""
    attempts = [
        "document.body.innerHTML = '<b>x</b>'",
        "document.createElement('button').setAttribute('onclick', 'window.fired = 1')",
        "document.createElement('script').text = 'window.fired = 1'",
        "document.createElement('iframe').srcdoc = '<b>x</b>'",
    ]
    for attempt in attempts:
        said = page.run(f"try {{ {attempt}; return 'accepted'; }} catch (error) {{ return error.name; }}")
        assert said == "TypeError", attempt
    refused = page.driver.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('accepted'), () => 0);"
        "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
    )
    assert refused == "connect-src"
    assert page.run("return window.fired") is None


def test_invisible_characters_are_spelled_out(browser: webdriver.Chrome, tmp_path: Path) -> None:
    rows = made_up(1, ["refine"])
    rows[0]["prompt"] = turn("user", "a\u202eb\x1b[31mc\u200bd\tend\n.")
    page = Page(browser, f"file://{write_report(run_of(tmp_path / 'run', rows))}")
    shown = page.run("return document.querySelector('#pair .prompt .text').textContent")
    assert shown == "a⟦U+202E⟧b⟦U+001B⟧[31mc⟦U+200B⟧d\tend\n."


@pytest.mark.parametrize("width", [390, 320])
def test_phone_needs_no_scrolling_sideways(page: Page, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        page.driver.refresh()
        assert page.run("return innerWidth") == width
        assert page.run("return document.documentElement.scrollWidth") == width
        chosen, rejected = page(".side.chosen").rect, page(".side.rejected").rect
        assert rejected["y"] >= chosen["y"] + chosen["height"], "one under the other"
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_until_it_is_switched_and_has_contrast(page: Page, scheme: str) -> None:
    def colours() -> list[float]:
        return [contrast(page, selector) for selector in (".lead", ".fine", "#pair h3 .chip", "mark", "nav a")]

    medium = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", medium)
    page.run("location.hash = '#status=rejected'")
    time.sleep(0.1)
    before = page.run("return getComputedStyle(document.body).backgroundColor")
    assert min(colours()) >= 4.5, colours()
    page("#theme").click()
    assert page.run("return getComputedStyle(document.body).backgroundColor") != before
    assert min(colours()) >= 4.5, colours()


def contrast(page: Page, selector: str) -> float:
    """WCAG's contrast of an element's text with what lies behind it, as the browser computes both."""
    found = page.run(
        """
        const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data]; };
        const element = document.querySelector(arguments[0]);
        let behind = element;
        while (rgb(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
        return [rgb(getComputedStyle(element).color), rgb(getComputedStyle(behind).backgroundColor)];
        """.replace("arguments[0]", json.dumps(selector))
    )

    def luminance(rgb: list[int]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in rgb[:3])]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(luminance(colour) for colour in found)
    return (light + 0.05) / (dark + 0.05)


def test_everything_can_be_reached_and_has_a_name(page: Page) -> None:
    unnamed = page.run(
        "return [...document.querySelectorAll('button, select, input')]"
        ".filter((e) => !e.textContent.trim() && !e.labels?.length && !e.ariaLabel).map((e) => e.id)"
    )
    assert unnamed == []
    levels = page.run("return [...document.querySelectorAll('h1, h2, h3, h4')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    page.press(Keys.TAB)
    assert page.run("return document.activeElement.className") == "skip"
    assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
