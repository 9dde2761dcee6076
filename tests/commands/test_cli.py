import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import cli
from finetune.commands.verb import parser_of
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
        module = import_module(f"finetune.commands.{verb}")
        assert callable(getattr(module, "main", None) or getattr(module, verb))
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
    def fail(pattern: str = "*") -> None:
        raise error

    monkeypatch.setattr("finetune.commands.models.models", fail)
    assert cli.main(["models"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch) -> None:
    def fail(pattern: str = "*") -> None:
        raise CheckpointError("broken")

    monkeypatch.setattr("finetune.commands.models.models", fail)
    with pytest.raises(CheckpointError):
        cli.main(["models", "--debug"])


def test_models_are_listed_by_pattern(capsys) -> None:
    assert cli.main(["models", "resnet18*"]) == 0
    shown = capsys.readouterr().out
    assert "resnet18.a1_in1k " in shown
    assert "11.7 M" in shown
    assert cli.main(["models", "nothing-like-it"]) == 2


def test_all_models_are_listed_without_building_them(capsys, monkeypatch) -> None:
    monkeypatch.setattr("timm.create_model", lambda name: pytest.fail(f"built {name}"))
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) > 1000
    assert re.search(r"^resnet18\.a1_in1k +11\.7 M .* 224  in1k +apache-2\.0$", shown, re.MULTILINE)
    assert re.search(r"^baseline_cnn +.* 64  no$", shown, re.MULTILINE)


def test_models_are_sorted_and_chosen_by_licence(capsys) -> None:
    assert cli.main(["models", "convnext*", "--licence=commercial", "--sort=parameters"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {row[-1] for row in rows} <= {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}
    sizes = [float(row[1]) for row in rows]
    assert sizes == sorted(sizes)
    assert not any("fcmae" in row[0] for row in rows)
    assert cli.main(["models", "convnextv2*", "--licence=none-such"]) == 2


def test_a_mistyped_option_names_the_nearest(capsys) -> None:
    assert cli.main(["predict", "x.ckpt", "a.jpg", "--outptu", "a.csv"]) == 2
    assert "did you mean --output?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--lr", "3"], "--model.lr"),
        (["--epochs", "3"], "--trainer.max_epochs"),
        (["--batch-size", "3"], "--data.batch_size"),
        (["--model.batch_size", "3"], "--data.batch_size"),
        (["--model.strateg", "all"], "--model.strategy"),
        (["."], "--data.root ."),
    ],
)
def test_an_option_of_another_section_is_named(given: list[str], meant: str, capsys) -> None:
    assert cli.main(["fit", *given]) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_abbreviated_options_are_refused(capsys) -> None:
    assert cli.main(["predict", "x.ckpt", "a.jpg", "--out", "a.csv"]) == 2
    assert cli.main(["fit", "--data.root", ".", "--trainer.max_epoch", "3"]) == 2
    assert "--trainer.max_epochs" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["--val-fraction", "--val_fraction"])
@pytest.mark.parametrize("sign", ["=", " "])
def test_dashes_and_underscores_are_the_same(spelling: str, sign: str) -> None:
    def verb(rest: list[str], *, val_fraction: float = 0.2) -> None:
        """Do."""

    parsed = parser_of(verb).typed([*f"{spelling}{sign}0.1".split(), "some_file", "-"])
    assert parsed == {"val_fraction": 0.1, "rest": ["some_file", "-"]}


@pytest.mark.parametrize("value", ["0", "-3", "x", "1.5", ""])
def test_whole_numbers_out_of_range_say_what_is_expected(value: str, capsys) -> None:
    assert cli.main(["check", ".", f"--max-pixels={value}"]) == 2
    error = capsys.readouterr().err
    assert "Expected --max-pixels to be a whole number" in error
    assert f"found {value}" in error.replace("'", "")
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", ["predict", "models", "check", "split", "inspect", "sample"])
def test_help_says_what_each_option_means_and_no_defaults_that_say_nothing(
    verb: str, capsys
) -> None:
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "(default: None)" not in shown
    assert "(default: False)" not in shown
    assert "``" not in shown
    options = shown.partition("options:")[2].splitlines()
    for line, following in zip(options, [*options[1:], ""], strict=True):
        if line.startswith("  -"):  # its meaning beside it or below it
            assert re.search(r"  -\S.*\S  +\S", line) or following.startswith(" " * 20), line


def test_names_without_a_code_in_the_terminals_alphabet_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "日本"
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "finetune", "check", str(folder)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert r"\u65e5\u672c" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "Expected --data.root, found none"),
        (["split", "."], "Expected --output, found none"),
        (["predict"], "Expected checkpoint, images, found none"),
        (["--data.batch_size", "x"], "--data.batch_size to be a whole number or null, found 'x'"),
        (["--data.val_fraction", "x"], "Expected --data.val_fraction to be a number, found 'x'"),
        (["--data.augmentation", "x"], "one of 'auto', 'none', 'light', 'medium', 'strong', found"),
        (["--model.strategy", "haed"], "did you mean head?"),
        (["--model.lr", "-1"], "Expected model.lr to be a number above 0 and at most"),
        (["--trainer.max_epochs", "0"], "--trainer.max_epochs to be a whole number of at least 1"),
    ],
)
def test_wrong_values_are_told_in_words(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], colour_folder: Path
) -> None:
    if arguments[0].startswith("--"):
        small = ["--model.backbone", "test_resnet", "--model.pretrained", "false"]
        arguments = ["fit", "--data.root", str(colour_folder), *small, *arguments]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "class '" not in error
