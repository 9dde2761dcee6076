"""The page in a real browser: dropped, pasted, chosen and photographed images, and a correction."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from finetune.data.manifest import read_manifest
from finetune.exporting.export import export
from finetune.exporting.onnx_model import OnnxModel
from finetune.prediction import predict
from finetune.serving import server
from finetune.serving.answerers import Model
from finetune.serving.app import Service, application
from finetune.serving.budget import Limits
from finetune.serving.corrections import Corrections
from finetune.serving.engine import Engine
from finetune.tasks.multiclass import MULTICLASS

TOKEN = "a-word-of-sixteen-letters"
# A file as a person drops or pastes it: its bytes travel as numbers.
GIVEN = """
const [bytes, kind] = arguments, data = new DataTransfer();
data.items.add(new File([new Uint8Array(bytes)], "given.png", {type: "image/png"}));
const event = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: data, bubbles: true})
  : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
document.getElementById("drop").dispatchEvent(event);
"""


@contextmanager
def served_here(model: Model, token: str | None = None, **options: Any) -> Iterator[str]:
    """A server of this process, on a port of its own."""
    limits = Limits()
    engine = Engine(model, images_in_work=limits.images_in_work)
    service = Service(model, engine, limits, token, **options)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(server.settings(application(service), limits))
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield server.address_of(listener)
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corrections")


@pytest.fixture(scope="module")
def address(classifier, kept: Path, browser: Chrome) -> Iterator[str]:
    corrections = Corrections(kept, classifier.class_names, MULTICLASS)
    with served_here(classifier, TOKEN, corrections=corrections) as found:
        yield found


@pytest.fixture
def page(browser: Chrome, address: str) -> Chrome:
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(f"{address}/#token={TOKEN}")
    wait(browser, lambda b: "It knows 3 classes" in b.find_element(By.ID, "about").text)
    return browser


def test_an_export_says_what_it_cannot(classifier, browser: Chrome, tmp_path: Path) -> None:
    export(classifier, tmp_path / "model.onnx")
    with served_here(OnnxModel.from_file(tmp_path / "model.onnx")) as address:
        browser.get(address)
        about = browser.find_element(By.ID, "about")
        wait(browser, lambda b: "It is an export: it cannot show where it looked" in about.text)
        browser.execute_script(GIVEN, list(b"<html>"), "drop")
        wait(browser, lambda b: "No answer" in b.find_element(By.CLASS_NAME, "card").text)


def wait(browser: Chrome, condition) -> None:
    WebDriverWait(browser, 20).until(condition)


def answered(page: Chrome, count: int) -> list:
    wait(page, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".bars li")) >= 3 * count)
    return page.find_elements(By.CSS_SELECTOR, ".card")


def test_an_image_is_dropped_pasted_chosen_and_photographed(
    page: Chrome, classifier, colour_folder: Path
) -> None:
    path = colour_folder / "red" / "03.png"
    content = list(path.read_bytes())
    for number, kind in enumerate(("drop", "paste"), start=1):
        page.execute_script(GIVEN, content, kind)
        answered(page, number)
    page.find_element(By.ID, "choose").send_keys(f"{path}\n{colour_folder / 'blue' / '01.png'}")
    answered(page, 4)
    page.find_element(By.ID, "camera").click()
    wait(page, lambda b: b.execute_script("return document.getElementById('video').videoWidth"))
    page.find_element(By.ID, "shoot").click()
    cards = answered(page, 5)
    found = predict(classifier, path)
    (expected,) = found.labels
    for card in cards[2:]:  # the newest first
        if "given" in card.text or "03" in card.text:
            shown = card.find_element(By.CLASS_NAME, "verdict").text
            assert shown == ("Unknown" if found.unknown[0] else expected)
            assert f"{100 * float(found.confidences[0]):.1f} %" in card.text
    # No script, style or image was refused, and nothing came from elsewhere.
    assert page.get_log("browser") == []
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    own = page.execute_script("return location.origin")
    assert loaded
    assert all(name.startswith((own, "blob:", "data:")) for name in loaded)
    assert TOKEN not in page.current_url


def test_a_correction_is_kept_and_the_map_is_shown(
    page: Chrome, colour_folder: Path, kept: Path
) -> None:
    path = colour_folder / "green" / "05.png"
    page.execute_script(GIVEN, list(path.read_bytes()), "drop")
    (card,) = answered(page, 1)
    before = card.find_element(By.TAG_NAME, "img").get_attribute("src")
    card.find_element(By.CLASS_NAME, "look").click()
    wait(page, lambda b: card.find_element(By.TAG_NAME, "img").get_attribute("src") != before)
    card.find_element(By.CLASS_NAME, "wrong-answer").click()
    Select(card.find_element(By.TAG_NAME, "select")).select_by_visible_text("green")
    card.find_element(By.CSS_SELECTOR, ".correction button").click()
    wait(page, lambda b: "Kept as green" in card.text)
    (image,) = read_manifest(kept / "corrections.csv", kept).images
    assert image.path.read_bytes() == path.read_bytes()


def test_what_is_no_image_is_told_in_its_card(page: Chrome) -> None:
    page.execute_script(GIVEN, list(b"<html>404</html>"), "drop")
    wait(page, lambda b: "found a web page" in b.find_element(By.CLASS_NAME, "card").text)


def test_without_the_token_the_page_asks_for_it(browser: Chrome, address: str) -> None:
    browser.get(address)
    browser.execute_script("sessionStorage.clear()")
    browser.get(address)
    wait(browser, lambda b: b.find_element(By.ID, "token").is_displayed())
    browser.find_element(By.ID, "token").send_keys(TOKEN)
    browser.find_element(By.CSS_SELECTOR, "#entry button").click()
    wait(browser, lambda b: not b.find_element(By.ID, "token").is_displayed())
    assert "It knows 3 classes" in browser.find_element(By.ID, "about").text


def test_a_screen_reader_finds_names_for_everything(page: Chrome, colour_folder: Path) -> None:
    page.execute_script(GIVEN, list((colour_folder / "red" / "03.png").read_bytes()), "drop")
    answered(page, 1)
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    wanted = {"image", "button", "combobox", "textbox", "region", "meter"}
    named = {
        node["role"]["value"]: bool(node.get("name", {}).get("value"))
        for node in nodes
        if not node.get("ignored") and node["role"]["value"] in wanted
    }
    assert {"button", "image", "meter"} <= named.keys()
    assert all(named.values()), named
