"""What all tests share: nothing outside a test's own folder is read or written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from PIL import Image

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# Before anything of ours is imported: caches and trackers look these up when they are.
_HOME = tempfile.mkdtemp(prefix="finetune-tests-")
os.environ.update(
    XDG_CACHE_HOME=f"{_HOME}/cache",
    XDG_DATA_HOME=f"{_HOME}/data",
    XDG_CONFIG_HOME=f"{_HOME}/config",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    # Lightning 2.6.6 still calls what jsonargparse 4.53 deprecates.
    JSONARGPARSE_DEPRECATION_WARNINGS="off",
)


settings.register_profile("suite", deadline=None)  # a busy machine is no fault
# Of make mutation: that a change fails is enough, and each has to meet the same examples.
settings.register_profile(
    "mutation",
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def write_colour_folder(root: Path, *, images: int = 12, side: int = 48, seed: int = 0) -> Path:
    """``root/<colour>/<n>.png``: noisy images whose class is their colour."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(images):
            noise = rng.normal(0, 40, (side, side, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve small images; not to be changed."""
    return write_colour_folder(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture(autouse=True)
def _own_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and outputs land in the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _figures_are_not_drawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Beside the report's own tests figures are made and saved blank: drawing takes seconds."""
    if request.path.parent.name == "reporting":
        yield
        return
    from matplotlib.figure import Figure

    def blank(figure: Figure, target: Any, *, format: str, dpi: int) -> None:
        size = [round(inches * dpi) for inches in figure.get_size_inches()]
        Image.new("RGB", size).save(target, format)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", blank)
        yield


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
OPTIONS = (
    "--headless",
    "--no-sandbox",  # chromium refuses to run as root with it, as in a container
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--window-size=1200,900",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A Chromium that keeps what its console says, with a camera that shows a test image."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
