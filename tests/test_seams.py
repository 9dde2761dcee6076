"""No seam between rooms is typed Any: mypy sees what one may ask of another."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "finetune"
SEAMS = {
    *("data", "datamodule", "datamodules", "original", "source", "teacher", "student"),
    *("classifier", "ensemble", "member", "members", "model", "network", "task"),
    *("loader", "module", "reader"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def annotated(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names of parameters, attributes and variables with their annotations."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation


def is_loose(annotation: ast.expr) -> bool:
    """Any itself, a union with it, or a mapping or sequence of it."""
    match annotation:
        case ast.Name(id="Any") | ast.Attribute(attr="Any"):
            return True
        case ast.BinOp(left=left, right=right):
            return is_loose(left) or is_loose(right)
        case ast.Subscript(value=ast.Name(id="Mapping" | "dict" | "Sequence" | "list" | "tuple")):
            inner = annotation.slice
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return any(is_loose(part) for part in parts)
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_seam_says_what_may_be_asked(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loose = [name for name, annotation in annotated(tree) if name in SEAMS and is_loose(annotation)]
    assert not loose, "say which questions it answers, in spec/protocols.py or by its class"


@pytest.mark.parametrize(
    ("text", "loose"),
    [
        ("def f(datamodule: Any): ...", True),
        ("def f(model: Any | None = None): ...", True),
        ("def f(datamodules: Mapping[int, Any]): ...", True),
        ("class A:\n    network: Any", True),
        ("def f(network: ImageNetwork, **data: float): ...", False),
    ],
)
def test_the_search_finds_them(text: str, loose: bool) -> None:
    found = [name for name, kind in annotated(ast.parse(text)) if name in SEAMS and is_loose(kind)]
    assert bool(found) == loose
