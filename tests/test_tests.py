"""Tests that cannot fail are no tests: the kinds that were found once are looked for everywhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def weak(tree: ast.AST) -> Iterator[str]:
    """What in a file of tests does less than it seems."""
    for node in ast.walk(tree):
        if isinstance(node, Function) and not node.name.startswith("test_"):
            marks = [ast.unparse(each) for each in node.decorator_list]
            if any(mark.startswith("pytest.mark.") for mark in marks):
                yield f"{node.name}: marked, and no test: pytest ignores the mark"
        if isinstance(node, ast.Assert):
            parts = [*ast.walk(node.test)]
            chosen = [each for each in parts if isinstance(each, ast.IfExp)]
            either = [each for each in parts if isinstance(each, ast.BoolOp)]
            values = [value for each in chosen for value in (each.body, each.orelse)]
            values += [value for each in either for value in each.values]
            if isinstance(node.test, ast.Tuple) or any(map(is_true, [node.test, *values])):
                yield f"line {node.lineno}: an assertion that may be of nothing"
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {each.arg for each in node.keywords}
            skips = name.startswith("pytest.mark.skip") or name == "pytest.mark.xfail"
            if (skips and "reason" not in given) or (name == "pytest.skip" and not node.args):
                yield f"line {node.lineno}: left out, and no reason given"


def is_true(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_test_is_of_a_weak_kind(path: Path) -> None:
    assert not [*weak(ast.parse(path.read_text(encoding="utf-8")))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("@pytest.mark.slow\ndef helper(): ...", True),
        ("@pytest.mark.slow\ndef test_it(): ...", False),
        ("@pytest.fixture\ndef helper(): ...", False),
        ("assert a == b if ready else True", True),
        ("assert a == b or True", True),
        ("assert (a == b, 'they differ')", True),
        ("assert True", True),
        ("assert a == b, 'they differ'", False),
        ("assert a == (b if ready else c)", False),
        ("pytest.skip()", True),
        ("pytest.skip('no browser')", False),
        ("pytest.mark.skipif(windows)", True),
        ("pytest.mark.skipif(windows, reason='no SIGTERM')", False),
    ],
)
def test_the_search_finds_them(text: str, found: bool) -> None:
    assert bool([*weak(ast.parse(text))]) == found
