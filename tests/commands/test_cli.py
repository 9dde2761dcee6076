import subprocess
import sys

import pytest

from finetune import cli
from finetune.errors import CheckpointError, UsageError

# What takes seconds to import.
HEAVY = ("torch", "torchvision", "lightning", "timm", "matplotlib", "pandas", "sklearn")


@pytest.mark.parametrize("arguments", [["--help"], ["fti"], ["--version"], ["predict", "--help"]])
def test_the_first_screen_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from finetune.cli import main\n"
        f"main({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_every_verb_has_a_module_and_stands_in_the_help(capsys) -> None:
    from importlib import import_module

    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    for verb, text in cli.VERBS.items():
        assert callable(import_module(f"finetune.commands.{verb}").main)
        assert verb in shown
        assert text in shown


def test_a_mistyped_verb_names_the_nearest(capsys) -> None:
    assert cli.main(["fitt"]) == 2
    assert "did you mean fit?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("Expected x, found y; do z."), 2),
        (CheckpointError("Expected x, found y; do z."), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(2), 2),
    ],
)
def test_exit_codes(monkeypatch, capsys, error: BaseException, code: int) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("finetune.commands.models.main", fail)
    assert cli.main(["models"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch) -> None:
    def fail(arguments: list[str]) -> int:
        raise CheckpointError("broken")

    monkeypatch.setattr("finetune.commands.models.main", fail)
    with pytest.raises(CheckpointError):
        cli.main(["models", "--debug"])


def test_models_are_listed_by_pattern(capsys) -> None:
    assert cli.main(["models", "resnet18*"]) == 0
    shown = capsys.readouterr().out
    assert "resnet18 " in shown
    assert "11.7 M" in shown
    assert cli.main(["models", "nothing-like-it"]) == 2


def test_a_mistyped_option_names_the_nearest(capsys) -> None:
    assert cli.main(["predict", "x.ckpt", "a.jpg", "--outptu", "a.csv"]) == 2
    assert "did you mean --output?" in capsys.readouterr().err


def test_abbreviated_options_are_refused(capsys) -> None:
    assert cli.main(["predict", "x.ckpt", "a.jpg", "--out", "a.csv"]) == 2
    assert cli.main(["fit", "--data.root", ".", "--trainer.max_epoch", "3"]) == 2
    assert "--trainer.max_epochs" in capsys.readouterr().err
