"""The tables of the page by hand; and the page in a browser: sorted, filtered, looked at by pointer and keyboard."""

import io
import json
import shutil

import numpy as np
import pytest
from hostile import TEXT
from PIL import Image

from src.data.image_url import thumbnail_url
from src.evaluation.gallery import Gallery, Picture, ScoredCaption
from src.evaluation.html import label, render_page
from src.evaluation.report_tables import ReportTable, best_cells, difference_tables, history_tables, score_tables


def printed(name, value):
    return f"{value:.1f}"


def test_best_values_by_hand():
    columns = {
        "CIDEr": {"CE": 1.0, "SCST": 3.04, "GRPO": 2.96},  # both print as 3.0
        "mBLEU": {"CE": 0.5, "SCST": 0.2, "GRPO": 0.9},  # lower is better
        "METEOR": {"CE": 0.7, "SCST": 0.7, "GRPO": 0.7},
        "vocabulary": {"CE": 100, "SCST": 200, "GRPO": 300},  # neither
    }
    rows = {system: {name: values[system] for name, values in columns.items()} for system in ("CE", "SCST", "GRPO")}
    assert best_cells(rows, list(columns), printed) == {("SCST", "CIDEr"), ("GRPO", "CIDEr"), ("SCST", "mBLEU")}
    assert best_cells({"CE": {"CIDEr": 1.0}}, ["CIDEr"], printed) == frozenset()


def values(*seeds):
    return {"mean": float(np.mean(seeds)), "std": float(np.std(seeds, ddof=1)) if seeds[1:] else 0.0, "seeds": seeds}


def test_scores_are_printed_as_in_the_report():
    systems = {
        "ce": {"CIDEr": values(0.5, 0.75), "truncated": values(0.25, 0.25), "novel": values(0.5, 0.5)},
        "grpo": {"CIDEr": values(1.0, 1.0), "truncated": values(0.0, 0.0)},
    }
    scores, others = score_tables(systems)
    assert scores.columns == ["CIDEr"] and scores.rows == {"ce": ["62.5 ± 17.7"], "grpo": ["100.0 ± 0.0"]}
    assert scores.marked == {("grpo", "CIDEr")}
    assert others.rows == {"ce": ["0.25"], "grpo": ["0"]} and others.marked == {("grpo", "truncated")}  # not all: novel
    (alone,) = score_tables({"ce": {"CIDEr": values(0.5)}})
    assert alone.rows == {"ce": ["50.0"]} and alone.marked == frozenset()


def test_intervals_that_exclude_0_are_marked():
    pair = {
        "METEOR": {"mean": 0.1, "low": -0.05, "high": 0.2, "seeds": [0.1]},
        "ROUGE_L": {"mean": 0.1, "low": 0.05, "high": 0.2, "seeds": [0.05, 0.15]},
        "CIDEr": {"mean": -0.1, "low": -0.2, "high": -0.05, "seeds": [-0.1]},
    }
    (table,) = difference_tables({"grpo-scst_leave_one_out": pair})
    name = "grpo-scst_leave_one_out"
    cells = ["+10.0 [-5.0, +20.0]", "+10.0 [+5.0, +20.0] (+5.0, +15.0)", "-10.0 [-20.0, -5.0]"]
    assert table.rows == {name: cells} and label(name) == "GRPO minus SCST leave one out"
    assert table.marked == {(name, "ROUGE_L"), (name, "CIDEr")} and table.mark == "excludes 0"
    assert difference_tables({}) == [] and "seed" not in table.title
    several = {"CIDEr": {"mean": 0.1, "low": 0.05, "high": 0.2, "seeds": [0.05, 0.15]}}
    (table,) = difference_tables({name: several})
    assert "each seed's difference in parentheses" in table.title and "all seeds together" in table.title


def test_histories_by_hand():
    first = [{"step": 0, "val/CIDEr": 0.5}, {"step": 1, "train/kl": -1e-9}, {"step": 2, "val/CIDEr": 0.75}]
    second = [{"step": 0, "val/CIDEr": 0.25}, {"step": 1, "train/kl": 0.0}, {"step": 2, "val/CIDEr": 1.25}]
    (table,) = history_tables({"ce": [[{"step": 1, "train/loss": 2.0}]], "grpo": [first, second]})
    assert table.columns == ["val/CIDEr", "train/kl", "train/loss"]
    assert table.rows == {"ce": ["", "", "2.000 to 2.000"], "grpo": ["0.375 to 1.000", "0.000 to 0.000", ""]}


# --- In a browser ---

SIDE = 3
NAMES = ["first.png", "second.png", "third.png"]
GAINS = {"scst": [0.5, -0.25, 0.125], "grpo": [-0.5, 0.75, 0.0]}
TEXTS = ["a dog runs", "two men on a boat", "<img src=x onerror=alert(1)> & a dog"]


def strongest(text, word):
    """The token that a word looks at most: another one in every caption."""
    return (len(text) + word) % (SIDE**2 - 1)


def attention(text):
    """Two thirds on the strongest token, one third on the last of the grid."""
    weights = np.zeros((len(text.split()), SIDE * SIDE))
    for word, row in enumerate(weights):
        row[strongest(text, word)], row[-1] = 2 / 3, 1 / 3
    return weights


def caption(text, cider):
    return ScoredCaption(text, cider, text.split(), attention(text))


def pictures():
    data = io.BytesIO()
    Image.new("RGB", (40, 30), "white").save(data, "PNG")
    url = thumbnail_url(data.getvalue(), 40)
    for number, (name, kind) in enumerate(zip(NAMES, ("highest", "lowest", "even"))):
        captions = {"ce": [caption(TEXTS[number], 1.0)]}
        for system, gains in GAINS.items():
            captions[system] = [caption("a cat", 1.0 + gains[number]), caption(f"a sample of {system}", 0.5)]
        yield Picture(name, url, ("a ground truth", f"number {number}"), kind, captions)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that writes down what it loads and what its console says."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program, driver = next(filter(None, programs), None), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium and chromedriver are not on PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser, tmp_path):
    """The page of three pictures, freshly opened."""
    systems = {name: {"CIDEr": values(1.0 + max(gains))} for name, gains in ({"ce": [0]} | GAINS).items()}
    file = tmp_path / "report.html"
    text = render_page(
        "CE, SCST and GRPO", "three images", score_tables(systems), {}, [], Gallery(list(pictures()), 100)
    )
    file.write_text(text, encoding="utf-8")
    browser.get_log("browser"), browser.get_log("performance")  # of the page before
    browser.get(file.as_uri())
    return browser


def find(page, selector):
    return page.find_elements("css selector", selector)


def shown(page):
    """The names of the visible cards, from top to bottom."""
    return [card.find_element("css selector", "h3").text for card in find(page, ".card") if card.is_displayed()]


def overlay(page):
    """The darkness of each cell of the grid, 0 to 1, of the one overlay; None where there is none."""
    script = """
        const canvas = document.querySelector(".frame canvas");
        if (!canvas) return null;
        const size = canvas.width / arguments[0];
        const brush = canvas.getContext("2d");
        const middle = (token) => [(token % arguments[0] + .5) * size, (Math.floor(token / arguments[0]) + .5) * size];
        return [...Array(arguments[0] ** 2).keys()].map((t) => brush.getImageData(...middle(t), 1, 1).data[3] / 255);
    """
    return page.execute_script(script, SIDE)


def press(page, *names):
    from selenium.webdriver import ActionChains, Keys

    for name in names:
        ActionChains(page).send_keys(getattr(Keys, name)).perform()


def test_it_opens_without_errors_and_without_a_network(page):
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked[0] == page.current_url and all(url.startswith("data:") for url in asked[1:])
    assert page.title == "CE, SCST and GRPO" and len(find(page, "h1")) == 1
    assert find(page, "html")[0].get_attribute("lang") == "en"
    assert all(image.get_attribute("alt") for image in find(page, "img"))
    assert len(find(page, "img")) == 3  # the caption that looks like one is text
    assert "<img src=x onerror=alert(1)> & a dog" in find(page, ".card")[2].text
    assert find(page, "td.marked")[0].text == "175.0\n(best)"


def test_hostile_text_is_shown_and_runs_nothing(browser, tmp_path):
    text = " ".join(TEXT.split())
    row = ScoredCaption(TEXT, 1.0, TEXT.split(), attention(TEXT))
    card = next(pictures())._replace(name=TEXT, ground_truths=(TEXT,), captions={"ce": [row, row], TEXT: [row, row]})
    file = tmp_path / "report.html"
    table = ReportTable(TEXT, [TEXT], {TEXT: [TEXT]}, frozenset([(TEXT, TEXT)]), TEXT)
    file.write_text(render_page(TEXT, TEXT, [table], {}, [table], Gallery([card], 1)), encoding="utf-8")
    browser.get_log("browser")  # of the page before
    browser.get(file.as_uri())
    assert browser.get_log("browser") == []
    assert find(browser, "h1")[0].get_attribute("textContent") == TEXT
    assert len(find(browser, "img")) == 1 and not find(browser, "svg")
    lines = [line.get_attribute("textContent") for line in find(browser, ".words")]
    assert lines == [text] * 4
    words = find(browser, ".words")[0].find_elements("css selector", "button")
    assert [word.get_attribute("textContent") for word in words] == TEXT.split()


def test_it_sorts_by_the_gain_of_either_system(page):
    from selenium.webdriver.support.select import Select

    assert shown(page) == NAMES
    find(page, "[data-order=down]")[0].click()
    assert shown(page) == ["first.png", "third.png", "second.png"]  # SCST: .5, .125, -.25
    Select(find(page, "#value")[0]).select_by_visible_text("GRPO")
    assert shown(page) == ["second.png", "third.png", "first.png"]  # GRPO: .75, 0, -.5
    find(page, "[data-order=up]")[0].click()
    assert shown(page) == ["first.png", "third.png", "second.png"]
    assert [button.get_attribute("aria-pressed") for button in find(page, "[data-order]")] == ["false", "true", "false"]
    find(page, "[data-order=none]")[0].click()
    assert shown(page) == NAMES


def test_chinese_words_are_chosen_and_found_without_blanks_between_them(browser, tmp_path):
    text, words = "一只猫在t恤上 red cat", ["一", "只", "猫", "在", "t", "恤", "上", "red", "cat"]
    row = ScoredCaption(text, 1.0, words, attention(" ".join(words)))
    cards = [Picture("cat.png", "data:,", ("一只猫",), "highest", {"ce": [row]}), *pictures()]
    cards = [card._replace(captions={"ce": card.captions["ce"]}) for card in cards]
    (tmp_path / "report.html").write_text(render_page("CE", "", [], {}, [], Gallery(cards, 100)), encoding="utf-8")
    browser.get((tmp_path / "report.html").as_uri())
    line = find(browser, ".words")[0]
    assert [button.text for button in line.find_elements("css selector", "button")] == words
    assert line.get_attribute("textContent") == text
    (field,) = find(browser, "#words")
    for wanted, names in (("猫", ["cat.png"]), ("恤上 red", ["cat.png"]), ("狗", []), ("at", [])):
        field.clear()
        field.send_keys(wanted)
        assert shown(browser) == names


def test_it_filters_by_words_and_by_choice(page):
    from selenium.webdriver.support.select import Select

    (field,) = find(page, "#words")
    for words, names in (("Dog", NAMES[::2]), ("a dog run", NAMES[:1]), ("number 2", NAMES[2:]), ("nothing", [])):
        field.clear()
        field.send_keys(words)
        assert shown(page) == names
        assert find(page, "#count")[0].text == f"{len(names)} of 3 images"
    field.clear()
    field.send_keys("dog")
    Select(find(page, "#chosen")[0]).select_by_visible_text("evenly spaced")
    assert shown(page) == ["third.png"]


def test_attention_under_the_pointer(page):
    from selenium.webdriver import ActionChains

    words = find(page, ".card:nth-child(2) .words")[0].find_elements("css selector", "button")
    assert [word.text for word in words] == TEXTS[1].split() and overlay(page) is None
    ActionChains(page).move_to_element(words[2]).perform()
    # clear on the fourth token, (17 + 2) % 8; half of that on the last, rounded to 32 of 63; 0.8 is the darkest
    expected = np.full(SIDE**2, 0.8)
    expected[3], expected[-1] = 0, 0.8 * (1 - 32 / 63)
    np.testing.assert_allclose(overlay(page), expected, atol=0.01)
    (frame,) = find(page, ".frame:has(canvas)")
    assert frame.find_element("xpath", "ancestor::article").find_element("css selector", "h3").text == NAMES[1]
    text = find(page, ".card:nth-child(2) figcaption")[0].text
    assert text == "“on”: most in row 2, column 1 of 3 × 3: 66.7 % (uniform: 11.1 %)"
    ActionChains(page).move_to_element(find(page, "h1")[0]).perform()
    assert overlay(page) is None


def test_attention_under_the_keyboard(page):
    assert len(find(page, ".words button[tabindex='0']")) == len(find(page, ".words"))  # one of each caption
    page.execute_script("document.getElementById('words').focus()")
    press(page, "TAB")
    focused = page.switch_to.active_element
    assert focused.text == "a" and overlay(page)[strongest(TEXTS[0], 0)] == 0
    press(page, "ARROW_RIGHT", "ARROW_RIGHT")
    assert page.switch_to.active_element.text == "runs" and overlay(page)[strongest(TEXTS[0], 2)] == 0
    assert find(page, "#spoken")[0].get_attribute("textContent").startswith("“runs”: most in row 2, column 2")
    press(page, "ARROW_RIGHT")
    assert page.switch_to.active_element.text == "runs"  # the last word
    press(page, "HOME")
    assert page.switch_to.active_element.text == "a"
    press(page, "ESCAPE")
    assert overlay(page) is None
    press(page, "END", "TAB")  # on to the next caption, not through its words
    assert page.switch_to.active_element.text == "a" and overlay(page)[strongest("a cat", 0)] == 0
    assert page.switch_to.active_element.find_element("xpath", "..").text == "a cat"
    press(page, "TAB", "ENTER", "TAB")  # opens the samples
    press(page, "END")
    assert page.switch_to.active_element.text == "scst" and overlay(page)[strongest("a sample of scst", 3)] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_the_contrast_of_wcag_aa(page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    script = """
        const colour = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
        const behind = (node) => {
            for (; node; node = node.parentElement) {
                const found = colour(getComputedStyle(node).backgroundColor);
                if (found.length === 3) return found;
            }
            return [255, 255, 255];
        };
        const texts = [...document.querySelectorAll("body *")].filter((node) =>
            node.checkVisibility() && [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim()));
        return texts.map((node) => [node.outerHTML.slice(0, 80), colour(getComputedStyle(node).color), behind(node)]);
    """
    texts = page.execute_script(script)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

    def luminance(colour):
        parts = np.array(colour[:3]) / 255
        return np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    assert len(texts) > 50 and len({tuple(behind) for _, _, behind in texts}) > 2
    for text, colour, behind in texts:
        dark, light = sorted((luminance(colour), luminance(behind)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, colour, behind)


def test_it_prints_without_tools_and_without_cutting_cards(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    tools = [part.is_displayed() for part in find(page, ".tools, .help, nav")]
    broken = [card.value_of_css_property("break-inside") for card in find(page, ".card")]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert tools == [False] * 3 and broken == ["avoid"] * 3
