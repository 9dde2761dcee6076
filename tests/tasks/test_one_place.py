"""What turns outputs into answers stands in one room; every other room asks the task."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "finetune"
OF_A_TASK = {
    "argmax",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "log_softmax",
    "logsigmoid",
    "mse_loss",
    "nll_loss",
    "sigmoid",
    "softmax",
}
# Elsewhere only where it is not about a prediction.
ALLOWED = {
    ("data/drawn_views.py", "argmax"): "the first box that fits",
    ("evaluation/scores.py", "argmax"): "the image with the largest loss",
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "tasks")


def called(tree: ast.AST) -> Iterator[str]:
    """Names of what is called or imported by its own name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node.func.id
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_room_makes_answers_of_outputs(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    found = OF_A_TASK & set(called(ast.parse(path.read_text(encoding="utf-8"))))
    assert not {each for each in found if (name, each) not in ALLOWED}, "ask the task"


def test_every_exception_is_needed() -> None:
    for name, each in ALLOWED:
        assert each in set(called(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))))
