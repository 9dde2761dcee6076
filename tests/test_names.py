"""One word per thing: the same noun in code, options, messages and docs."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "finetune"
WRITTEN = [
    path
    for folder in ("src", "tests", "docs", "configs", "notebooks", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".md", ".yaml", ".ipynb", ".j2", ".js", ".css", ".sh"}
] + [ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]

# What names today's things by the names of earlier versions, and why.
OLD_NAMES = {
    "src/finetune/training/metrics_file.py",  # reads what they wrote
    "tests/commands/test_runs.py",
    "tests/test_names.py",
}

# HTML has an element of that name.
HTML = re.compile(r"</?picture>|\.wide picture|picture img")

# Files of one name mirror each other: the verb and what it calls, a description and its maker.
MIRRORS = {
    "__init__",
    "bootstrap_heads",  # combining, and its verb's option
    "datamodule",  # of images, and of cached activations
    "diversity",  # computed, and drawn
    "ensemble",
    "evaluate",
    "explain",
    "export",
    "probe",  # the phase
    "report",
    "resume",  # of a fit, and its option
    "sample",
    "splits",  # described, and dealt out
    "timm_folder",  # read, and written
}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_image_is_called_image(path: Path) -> None:
    if str(path.relative_to(ROOT)) not in OLD_NAMES:
        text = path.read_text(encoding="utf-8").lower()
        assert "pictur" not in HTML.sub("", text)


def test_two_files_share_a_name_only_where_they_mirror_each_other() -> None:
    rooms = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        rooms[path.stem].append(str(path.parent.relative_to(PACKAGE)))
    shared = {name: sorted(found) for name, found in rooms.items() if len(found) > 1}
    assert set(shared) <= MIRRORS, shared
