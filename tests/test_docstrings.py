"""The examples in the docstrings of the public names are true; the site's reference shows them."""

from __future__ import annotations

import doctest
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import finetune
from finetune.cli import VERBS

SETTINGS = {
    "backbone": "test_resnet",
    "pretrained": False,
    "image_size": 32,
    "strategy": "head",
    "accelerator": "cpu",
    "cache": "off",
}


def examples() -> Iterator[doctest.DocTest]:
    """One a docstring: of each public name, and of the methods of classes."""
    finder = doctest.DocTestFinder()
    for name in finetune.__all__:
        value = getattr(finetune, name)
        module = sys.modules[value.__module__]
        yield from finder.find(value, f"finetune.{name}", module, globs={})


EXAMPLES = [each for each in examples() if each.examples]


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory, colour_folder: Path) -> Path:
    """The folder that the examples speak of: images of pets, two fits of them, new images."""
    folder = tmp_path_factory.mktemp("examples")
    for colour, name in (("red", "cat"), ("green", "dog")):
        shutil.copytree(colour_folder / colour, folder / "pets" / name)
    (folder / "new").mkdir()
    for number in (1, 2, 3):
        shutil.copy(colour_folder / "red" / f"0{number}.png", folder / "new" / f"{number}.png")
    for seed in (0, 1):
        images, runs = folder / "pets", folder / "runs"
        finetune.fit(images, name="pets", runs=runs, seed=seed, quiet=True, **SETTINGS)
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_is_true(
    example: doctest.DocTest, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(pets, tmp_path / "own"))
    example.globs = {"finetune": finetune, "torch": torch}
    said: list[str] = []
    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert not found.failed, "".join(said)


def test_every_public_name_is_shown() -> None:
    """In an example here, or, of those that are commands too, in the guide, which is run."""
    shown = {example.name for example in EXAMPLES}
    for example in EXAMPLES:
        shown |= set(
            re.findall(r"finetune\.\w+", "".join(line.source for line in example.examples))
        )
    assert {name for name in finetune.__all__ if f"finetune.{name}" not in shown} <= {*VERBS}
