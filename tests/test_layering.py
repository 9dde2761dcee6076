"""Imports run in one direction only, as docs/architecture.md draws it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "finetune"

FLOOR = {
    "cache_dir",
    "csv_table",
    "distribution",
    "documents",
    "errors",
    "extras",
    "files",
    "processes",
    "long_steps",
    "runtime",
    "spec",
    "storage",
    "tasks",
}
ALLOWED = {
    "errors": set(),
    "distribution": set(),
    "cache_dir": {"spec"},
    "csv_table": {"errors"},
    "extras": {"distribution", "errors"},
    "files": {"errors"},
    "processes": {"errors"},
    "storage": {"errors", "extras", "files"},
    "runtime": {"errors", "processes"},
    "long_steps": {"processes"},
    "spec": {"errors"},
    "tasks": {"errors", "spec"},
    "documents": {"errors", "spec"},
    "tables": FLOOR,
    "data": FLOOR,
    "networks": FLOOR,
    "evaluation": FLOOR,
    "training": FLOOR | {"networks", "evaluation"},
    "combining": FLOOR | {"networks", "tables", "evaluation", "training"},
    "prediction": FLOOR | {"tables", "data", "evaluation", "training", "combining"},
    "reporting": FLOOR | {"tables", "data", "evaluation", "training", "combining", "prediction"},
    "exporting": FLOOR | {"networks", "evaluation", "training", "combining"},
    "serving": FLOOR | {"data", "training", "combining", "prediction", "reporting", "exporting"},
}
# Where data and networks meet, by design.
ALLOWED_MODULES = {"training/features/extract.py": {"data"}}
SEE_ALL = {"cli", "commands", "__init__", "__main__"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, also inside its functions."""
    package = ("finetune", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, node.module)) if node.module else ".".join(base)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_in_the_allowed_direction(path: Path) -> None:
    room = room_of(path)
    if room in SEE_ALL:
        return
    allowed = ALLOWED[room] | {room} | ALLOWED_MODULES.get(str(path.relative_to(PACKAGE)), set())
    found = {
        module.split(".")[1] for module in imported_modules(path) if module.startswith("finetune.")
    }
    assert found <= allowed, f"{path.name} imports {sorted(found - allowed)}"


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("networks", "lightning"),
        ("data", "timm"),
        ("training", "timm"),
        ("combining", "timm"),
        ("exporting", "timm"),
    ],
)
def test_a_library_stays_in_its_room(room: str, forbidden: str) -> None:
    users = [
        str(path.relative_to(PACKAGE))
        for path in (PACKAGE / room).rglob("*.py")
        if any(module.split(".")[0] == forbidden for module in imported_modules(path))
    ]
    # timm's optimizer factory is the one piece outside its networks that we use.
    assert set(users) <= {"training/optimizers.py"}


def test_lightning_is_imported_by_its_one_name() -> None:
    for path in FILES:
        assert "pytorch_lightning" not in {m.split(".")[0] for m in imported_modules(path)}


def test_the_package_has_no_room_for_odds_and_ends() -> None:
    vague = {"util", "utils", "common", "helper", "helpers", "misc"}
    assert not [path for path in FILES if path.stem in vague]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_is_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
