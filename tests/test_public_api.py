"""The public names, and that each is what it says."""

import ast
from pathlib import Path

import finetune


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
