"""What the docs tell to type can be typed: every block of commands, Python and settings.

Commands are parsed by their verb's own parser, which then stops; the tutorial is run as it stands.
A block of neither is fenced as ``text``, or says why it is not run in a comment before it.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

import finetune
from finetune.cli import VERBS, main
from finetune.commands.trainer import FinetuneCLI
from finetune.commands.verb import Parser

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(
    r"(?P<why><!-- not run: [^>]+ -->\n+)?"
    r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
COMMANDS = ("", "console", "sh")
# Commands of others: known, and not ours to try.
OTHERS = ("pip install", "git tag", "twine", "wandb", "python benchmarks/", "python this.py")


@dataclass(frozen=True)
class Block:
    """A fenced block, and where it stands."""

    page: Path
    line: int
    kind: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*kinds: str) -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            body = dedent(found["body"])
            ours = not (found["why"] or body.startswith("# peer"))
            if ours and found["kind"] in kinds:
                yield Block(page, text[: found.start()].count("\n") + 1, found["kind"], body)


def commands(block: Block) -> list[str]:
    """One a line: continued lines joined, comments and the shell's own words taken off."""
    body = block.body.replace("\\\n", " ")
    lines = [line.strip() for line in body.splitlines()]
    if block.kind == "console" or any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    split = [re.sub(r"\s#.*$", "", line) for line in lines if not line.startswith("#")]
    split = [re.sub(r"^for .*?; do ?|; done$|^done$", "", line).strip() for line in split]
    return [line for line in split if line]


def tables() -> Iterator[tuple[Path, str]]:
    """Commands that begin a row of a table."""
    for page in PAGES:
        for line in re.findall(r"^\| `(finetune [^`]+)`", page.read_text("utf-8"), re.MULTILINE):
            yield page, line


class Parsed(Exception):
    """The options of a verb were understood."""


@pytest.fixture
def stops_when_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Parser.typed

    def typed(self: Parser, arguments: Sequence[str]) -> None:
        whole(self, arguments)
        raise Parsed

    def parsed(self: FinetuneCLI) -> None:
        raise Parsed

    monkeypatch.setattr("finetune.extras._is_there", lambda name: True)  # ray is no part of dev
    monkeypatch.setattr(Parser, "typed", typed)
    monkeypatch.setattr(FinetuneCLI, "before_instantiate_classes", parsed)
    monkeypatch.chdir(ROOT)  # where configs/ is


def understood(command: str) -> None:
    """Let the verb's parser read a command; nothing is run."""
    words = [word for word in shlex.split(command.replace("$fold", "0"))[1:] if word != "..."]
    verb, options = words[0], words[1:]
    if verb in ("--version", "--help", "help"):
        return
    assert verb in VERBS, command
    if "--ckpt_path" in options:
        place = options.index("--ckpt_path") + 1
        kind = "ensemble" if "ensemble" in options[place] else "classifier"
        options[place] = str(FIXTURES / f"format1_{kind}.ckpt")
    for begun in {"--resume", "--update"} & {*options} if verb == "fit" else ():
        place = options.index(begun)
        options[place : place + 2] = ["--data.root", "DIR"]
    with pytest.raises(Parsed):
        main([verb, *options, "--debug"])


@pytest.mark.usefixtures("stops_when_parsed")
@pytest.mark.parametrize("block", [*blocks(*COMMANDS)], ids=str)
def test_a_block_of_commands_can_be_typed(block: Block) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    found = commands(block)
    assert found
    for line in found:
        if line.startswith("finetune "):
            understood(line)
        elif line.startswith("make "):
            assert {word for word in line.split()[1:] if "=" not in word} <= targets
        elif line.startswith("python benchmarks/"):
            assert (ROOT / line.split()[1]).is_file()
        else:
            assert line.startswith(OTHERS), f"{line!r}: a command of whom? Or fence it as text"


@pytest.mark.usefixtures("stops_when_parsed")
@pytest.mark.parametrize(("page", "line"), [*tables()], ids=lambda value: str(value)[:60])
def test_a_command_in_a_table_can_be_typed(page: Path, line: str) -> None:
    understood(line)


def public_call(call: ast.Call, imported: dict[str, str]) -> str | None:
    """The public name that is called, as ``finetune.fit`` or as it was imported."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="finetune"), attr=name):
            return name
        case ast.Name(id=name):
            return imported.get(name)
    return None


@pytest.mark.parametrize("block", [*blocks("python")], ids=str)
def test_a_block_of_python_calls_what_is_there(block: Block) -> None:
    tree = ast.parse(block.body)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finetune":
            module = import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                if node.module == "finetune":
                    imported[alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := public_call(node, imported)):
            assert name in finetune.__all__, f"{block}: finetune.{name}"
            keywords = {each.arg: None for each in node.keywords if each.arg}
            inspect.signature(getattr(finetune, name)).bind(*node.args, **keywords)


@pytest.mark.parametrize("block", [*blocks("yaml")], ids=str)
def test_a_block_of_settings_is_yaml(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.body), dict)


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    kinds = {
        found["kind"]
        for page in PAGES
        for found in FENCE.finditer(page.read_text(encoding="utf-8"))
        if not found["why"]
    }
    assert kinds <= {*COMMANDS, "python", "yaml", "text"}


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: finetune\.(\w+)$", page, re.MULTILINE)) == finetune.__all__


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(
    colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command in order, on a small folder with a small network."""
    (tmp_path / "DIR").symlink_to(colour_folder)
    small = "--model.pretrained=false --model.image_size=32 --trainer.max_epochs=1"
    page = ROOT / "docs" / "tutorial.md"
    lines = [
        line
        for block in blocks("")
        if block.page == page
        for line in commands(block)
        if line.startswith("finetune ")
    ]
    assert len(lines) >= 8
    for line in lines:
        line = line.replace(
            "--model.backbone tf_efficientnet_lite0", "--model.backbone test_resnet"
        )
        words = shlex.split(f"{line} {small}" if " fit " in line else line)[1:]
        assert main(words) == 0, line
    assert (tmp_path / "runs/first-1/report/index.html").is_file()
    assert (tmp_path / "answers.csv").is_file()
    assert (tmp_path / "runs/trio-2/metrics.json").is_file()


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """``mkdocs build --strict``: no broken link, no page left out, no font or script of others."""
    pytest.importorskip("mkdocs", reason="the site is built where the extra docs is installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=.?(https?://[^\"' >]+)", text)
        styles = [tag for tag in re.findall(r"<link[^>]*>", text) if "stylesheet" in tag]
        loaded += [tag for tag in styles if "http" in tag]
        assert not loaded, page
