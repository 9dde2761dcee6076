"""The page in a real browser: nothing runs that should not, everything works that should."""

import base64
import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.manifest import read_manifest
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.result import Evaluation
from finetune.prediction.suggestions import Suggestion
from finetune.reporting.label_page import render_label_page, to_label, to_relabel
from finetune.reporting.report import ReportDetails, write_page
from finetune.reporting.triage import LabelSuspect
from finetune.spec.images import SPLITS

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)//",
    "ordinary",
]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    probabilities = rng.dirichlet(np.ones(4), size=40)
    paths = [f"a \"quoted\" 'name' onload=alert(4) {i}.jpg" for i in range(39)] + ["needle.jpg"]
    probabilities[39] = 0.97, 0.01, 0.01, 0.01  # surely wrong
    return evaluate(labels, probabilities, EVIL, paths)


@pytest.fixture(scope="module")
def opened(
    browser: webdriver.Chrome, evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory
) -> webdriver.Chrome:
    details = ReportDetails(settings={EVIL[0]: EVIL[1]})
    path = write_page(
        tmp_path_factory.mktemp("page") / "index.html",
        {EVIL[0]: (evaluation, details)},
        title=EVIL[0],
    )
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    return browser


def test_no_foreign_script_runs_and_none_of_ours_is_refused(
    opened: webdriver.Chrome, evaluation: Evaluation
) -> None:
    assert opened.title == EVIL[0]
    assert len(opened.find_elements(By.TAG_NAME, "script")) == 1
    assert opened.find_elements(By.CSS_SELECTOR, "img[src=x]") == []
    shown = {cell.text for cell in opened.find_elements(By.CSS_SELECTOR, "#classes-1 tbody bdi")}
    assert shown == set(EVIL)
    # An alert would make every one of these commands fail; a refused style or script is logged.
    assert opened.get_log("browser") == []


def test_nothing_is_loaded_from_anywhere(opened: webdriver.Chrome) -> None:
    loaded = opened.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in loaded if not name.startswith("data:")] == []


def column(opened: webdriver.Chrome, number: int) -> list[str]:
    cells = opened.find_elements(By.CSS_SELECTOR, f"#classes-1 tbody tr > :nth-child({number})")
    return [cell.get_attribute("data-value") for cell in cells]


def test_the_table_sorts_by_mouse_and_by_keyboard(opened: webdriver.Chrome) -> None:
    button = opened.find_elements(By.CSS_SELECTOR, "#classes-1 th button")[3]  # recall
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    header = button.find_element(By.XPATH, "..")
    button.click()
    ascending = [float(value) for value in column(opened, 4)]
    assert ascending == sorted(ascending)
    assert header.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert [float(value) for value in column(opened, 4)] == sorted(ascending, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"


def shown_cards(opened: webdriver.Chrome) -> list[str]:
    return opened.execute_script(
        "return [...document.querySelectorAll('#gallery1 li')].filter(e => e.offsetParent)"
        ".map(e => e.dataset.path)"
    )


def test_the_gallery_filters_by_class_confidence_and_name(
    opened: webdriver.Chrome, evaluation: Evaluation
) -> None:
    wrong = evaluation.predictions != evaluation.labels
    assert len(shown_cards(opened)) == wrong.sum()
    form = opened.find_element(By.CSS_SELECTOR, "form.filters")
    label = Select(form.find_element(By.NAME, "label"))
    label.select_by_visible_text(EVIL[1])
    assert len(shown_cards(opened)) == (wrong & (evaluation.labels == 1)).sum()
    assert "shown" in form.find_element(By.TAG_NAME, "output").text
    label.select_by_visible_text("all")
    confidence = form.find_element(By.NAME, "confidence")
    confidence.clear()
    confidence.send_keys("95")
    assert shown_cards(opened) == ["needle.jpg"]
    confidence.clear()
    confidence.send_keys("0")
    form.find_element(By.NAME, "text").send_keys("NEEDLE")
    assert shown_cards(opened) == ["needle.jpg"]
    form.find_element(By.NAME, "text").send_keys(Keys.BACKSPACE * 6)
    assert len(shown_cards(opened)) == wrong.sum()


def test_dark_is_followed_by_colours_and_figures(opened: webdriver.Chrome) -> None:
    look = (
        "return [getComputedStyle(document.body).backgroundColor,"
        "document.querySelector('picture img').currentSrc.length]"
    )
    seen = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        seen.append(
            opened.execute_async_script(
                "const done = arguments[0]; requestAnimationFrame(() => setTimeout(() => done("
                f"(() => {{ {look} }})()), 50))"
            )
        )
    (light, light_figure), (dark, dark_figure) = seen
    assert light == "rgb(255, 255, 255)"
    assert dark == "rgb(21, 24, 28)"
    assert light_figure != dark_figure


def test_nothing_goes_past_the_edge_of_a_phone(opened: webdriver.Chrome) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert opened.execute_script("return document.documentElement.scrollWidth") == 360
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_screen_reader_finds_names_for_everything(opened: webdriver.Chrome) -> None:
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"]
        in {"image", "button", "combobox", "textbox", "searchbox", "spinbutton", "region", "link"}
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    roles = [node["role"]["value"] for node in nodes]
    assert "main" in roles
    assert "banner" in roles
    assert opened.execute_script("return document.documentElement.lang") == "en"
    levels = opened.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3')].map(e => Number(e.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_without_its_script_the_page_shows_everything(
    opened: webdriver.Chrome, evaluation: Evaluation
) -> None:
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    opened.refresh()
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    cards = opened.find_elements(By.CSS_SELECTOR, "#gallery1 li")
    assert len(cards) == (evaluation.predictions != evaluation.labels).sum()
    assert not opened.find_element(By.CSS_SELECTOR, "form.filters").is_displayed()


def test_a_printed_report_is_two_pages(
    browser: webdriver.Chrome, tmp_path: Path, make_evaluation: Callable[..., Evaluation]
) -> None:
    names = [f"class {i}" for i in range(12)]
    curves = {"train/loss": [(0, 1.0)], "val/loss": [(0, 1.0)], "val/accuracy": [(0, 0.5)]}
    details = ReportDetails(
        class_counts={side: dict.fromkeys(names, 20) for side in ("train", "val", "test")},
        learning_curves=curves,
        settings={"model": "x"},
        commands=["finetune fit --config runs/demo-1/config.yaml"] * 2,
    )
    path = tmp_path / "index.html"
    write_page(path, {"t": (make_evaluation(400, names), details)}, title="t")
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    assert len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"]))) == 2


HOSTILE = ["=1+1", 'say "it", twice', *EVIL]


@pytest.fixture
def labelling(
    browser: webdriver.Chrome, tmp_path: Path
) -> tuple[webdriver.Chrome, list[Suggestion]]:
    """A page with three images, and downloads into the test's folder."""
    images = []
    for number in range(3):
        path = tmp_path / f"image, {number}.png"
        Image.fromarray(np.full((40, 90, 3), 80 * number, dtype=np.uint8)).save(path)
        images.append(Suggestion(str(path), 0.5, tuple(HOSTILE), 0.4, HOSTILE[0]))
    shown = render_label_page(list(map(to_label, images)), HOSTILE, notes=EVIL)
    open_labelling(browser, shown, tmp_path)
    return browser, images


def open_labelling(browser: webdriver.Chrome, shown: str, folder: Path) -> None:
    """The page in the browser, whose downloads go into the same folder."""
    page = folder / "label.html"
    page.write_text(shown, encoding="utf-8")
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    browser.get_log("browser")
    browser.get(page.as_uri())


def test_suspects_are_relabelled_by_keys_and_the_manifest_counts(
    browser: webdriver.Chrome, colour_folder: Path, tmp_path: Path
) -> None:
    # Two that are called blue are surely red; one green image is like no other.
    paths = sorted(map(str, colour_folder.rglob("*.png")))
    names = ("blue", "green", "red")
    wrong = [LabelSuspect(n, paths[n], "blue", "another class", "red", 0.1, True) for n in (0, 1)]
    strange = LabelSuspect(12, paths[12], "green", "no class", "", 1.0, True)
    sure = {"blue": 0.05, "green": 0.05, "red": 0.9}
    shown = [to_relabel(each, sure, each.path) for each in (*wrong, strange)]
    open_labelling(browser, render_label_page(shown, names, relabels=True), tmp_path)
    said, body = browser.find_element(By.ID, "said"), browser.find_element(By.TAG_NAME, "body")
    assert browser.find_element(By.TAG_NAME, "h1").text == "Look at the labels of 3 images"
    assert said.text == "labelled blue; the classifier says red (90%)"
    body.send_keys("3")
    body.send_keys("2")  # a slip
    assert said.text == "labelled green; unlike all other images"
    body.send_keys("u")
    body.send_keys("1")  # its label was right
    body.send_keys("s")
    wait_for((tmp_path / "labels.csv").is_file)
    assert browser.get_log("browser") == []
    # Beside its folder the manifest decides, and nothing else has changed.
    data = {"num_workers": 0, "cache": "off", "allow_outside": True}
    more = ImageFolderDataModule(colour_folder, more=str(tmp_path / "labels.csv"), **data)
    labels = {Path(i.path): names[int(str(i.label))] for s in SPLITS for i in more.images(s)}
    expected = {Path(path): Path(path).parent.name for path in paths} | {Path(paths[0]): "red"}
    assert labels == expected


def test_images_are_labelled_by_keys_and_saved_as_a_manifest(
    labelling: tuple[webdriver.Chrome, list[Suggestion]], tmp_path: Path
) -> None:
    browser, images = labelling
    body = browser.find_element(By.TAG_NAME, "body")
    progress = browser.find_element(By.ID, "progress")
    body.send_keys("2")
    body.send_keys("1")
    assert progress.text == "Image 3 of 3; 2 labelled"
    body.send_keys("u")
    assert progress.text == "Image 2 of 3; 1 labelled"
    field = browser.find_element(By.ID, "name")
    field.send_keys("new 1 class")  # keys in the field are text
    field.send_keys(Keys.ENTER)
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(str(len(HOSTILE) + 1))  # what was added has a key now
    assert progress.text == "Image 3 of 3; 3 labelled"
    body.send_keys("s")
    saved = tmp_path / "labels.csv"
    wait_for(saved.is_file)
    found = read_manifest(saved, tmp_path)
    labels = {image.path.name: found.class_names[int(str(image.label))] for image in found.images}
    names = [HOSTILE[1], "new 1 class", "new 1 class"]
    assert labels == dict(zip((Path(each.path).name for each in images), names, strict=True))
    assert browser.get_log("browser") == []


def wait_for(what: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    assert what()
