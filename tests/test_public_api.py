"""The public names, and that each is what it says."""

import ast
import re
from importlib import import_module
from pathlib import Path

import finetune
from finetune.cli import VERBS


def test_every_public_name_is_there_and_documented() -> None:
    assert finetune.__all__ == sorted(finetune.__all__)
    for name in finetune.__all__:
        value = getattr(finetune, name)
        assert value.__module__.startswith("finetune.")
        assert value.__doc__, f"{name} has no docstring"
    assert set(finetune.__all__) <= set(dir(finetune))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(str(finetune.__file__)).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(finetune.__all__)


def test_every_module_says_what_it_is() -> None:
    for path in Path(str(finetune.__file__)).parent.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


GUIDE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")


def test_the_guide_names_what_is_promised() -> None:
    """Every function of the top level stands in the guide, and nothing there is not."""
    functions = [name for name in finetune.__all__ if name[0].islower()]
    of_the_command = set(VERBS) & set(functions)
    named = set(re.findall(r"finetune\.(\w+)\(", GUIDE)) | set(
        re.findall(r"`(\w+)\([^`]*\)`", GUIDE.partition("## Names of settings")[0])
    )
    assert of_the_command <= named
    assert {name for name in named if hasattr(finetune, name)} <= set(finetune.__all__)
    in_python = {"help", "predictor", "to_csv"}
    assert named - in_python <= set(finetune.__all__)


def test_modules_that_are_not_promised_are_named_as_internal() -> None:
    promised = GUIDE.partition("## What is promised")[2].partition("\n## ")[0]
    package = Path(str(finetune.__file__)).parent
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"`(?:finetune\.)?(\w+)`", promised))
    for module, names in re.findall(r"`(finetune\.training\.\w+)` \(([^)]*)\)", promised):
        for name in re.findall(r"`(\w+)`", names):
            assert getattr(import_module(module), name)
