"""Files never decide which code runs, and a hostile one is one line."""

import json
import os
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.commands.parallel_fits import fit_in_a_process
from finetune.commands.trusted_imports import ROOTS

SMALL = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
STRANGER = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from lightning.pytorch.callbacks import Callback
class Evil(Callback): pass
def run(*_): pass
"""
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stranger's importable module ``stranger_code`` leaves a sign that it ran."""
    marker = tmp_path / "ran"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "stranger_code.py").write_text(STRANGER.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return marker


def of_lambda(target: str) -> dict:
    return {"callbacks": [{"class_path": LAMBDA, "init_args": {"on_fit_start": target}}]}


TOUCH = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "popen"]}}
CODE = {
    "a callback": {"callbacks": [{"class_path": "stranger_code.Evil"}]},
    "a callback by its name": {"callbacks": ["stranger_code.Evil"]},
    "one callback": {"callbacks": "stranger_code.Evil"},
    "a logger": {"logger": {"class_path": "stranger_code.Evil"}},
    "a profiler": {"profiler": TOUCH},
    "a plug-in": {"plugins": "stranger_code.Evil"},
    "a function": of_lambda("stranger_code.run"),
    "a command": of_lambda("os.system"),
    "a command behind a name of the list": of_lambda("torch.os.system"),
    "a repository": of_lambda("torch.hub.load"),
    "an unpickler": of_lambda("torch.load"),
    "another file": {"callbacks": "callbacks.yaml"},
}


@pytest.mark.parametrize("trainer", CODE.values(), ids=CODE)
@pytest.mark.parametrize("place", ["config", "options"])
def test_only_modules_of_the_list_are_named(
    trainer: dict,
    place: str,
    colour_folder: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("callbacks.yaml").write_text(json.dumps(CODE["a callback"]["callbacks"]))
    options = [
        f"--trainer.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in trainer.items()
    ]
    if place == "config":
        Path("config.yaml").write_text(json.dumps({"trainer": trainer}))
        options = ["--config=config.yaml"]
    assert main(["fit", f"--data.root={colour_folder}", *SMALL, *options]) != 0
    error = capsys.readouterr().err
    if options[0].startswith("--trainer.profiler"):  # which may be a name: the option is taken so
        assert "`profiler`" in error
    else:
        assert error.startswith(f"finetune: Expected a class of {', '.join(ROOTS)}, found")
    assert error.count("\n") == 1
    assert not marker.exists()
    assert not Path("popen").exists()


def test_a_named_module_is_imported_and_only_this_time(colour_folder: Path, marker: Path) -> None:
    fit = ["fit", f"--data.root={colour_folder}", *SMALL, "--data.cache=off", "--name=run"]
    fit += ["--model.strategy=head", "--trainer.callbacks=stranger_code.Evil"]
    assert main([*fit, "--imports=stranger_code"]) == 0
    assert marker.exists()
    assert main(fit) == 2
    # The run folder names the module, but only the command line may say that it is trusted.
    figures = Path("runs/run-1/metrics.json")
    figures.write_text(figures.read_text().replace('"finished": true', '"finished": false'))
    resume = ["fit", "--resume=runs/run-1"]
    assert main(resume) == 2
    config = Path("runs/run-1/config.yaml")
    config.write_text(config.read_text().replace("imports: null", "imports: stranger_code"))
    assert "imports: stranger_code" in config.read_text()
    assert main(resume) == 2


@pytest.mark.parametrize("name", ["", "a b", "os;x", "*", "jsonargparse", "../x"])
def test_imports_are_names_of_modules(colour_folder: Path, name: str) -> None:
    assert main(["fit", f"--data.root={colour_folder}", *SMALL, f"--imports={name}"]) == 2


SETTINGS = {
    "imports: stranger_code": "--imports on the command line",
    "track_to: attacker": "--track-to on the command line",
    "resume: runs/x": "--resume on the command line",
    "ckpt_path: [1]": "ckpt_path",
    "trainer: null": "trainer",
    "model: model.yaml": "model",
    "name: .nan": "--name",
    'name: "a\\0b"': "null byte",
    "name: a\nname: b": "twice",
    "5: 3": "must be a string",
    "trainer: {callbacks: pipe}": "pipe",
    "data: {manifest: pipe}": "pipe",
    "trainer: {callbacks: latin.yaml}": "--trainer.callbacks",
    "trainer: {callbacks: deep.yaml}": "deep.yaml",
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.items())
def test_hostile_settings_are_one_line(
    colour_folder: Path, settings: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    Path("latin.yaml").write_bytes("- Käfer".encode("latin-1"))
    Path("deep.yaml").write_text("[" * 500 + "]" * 500)
    Path("config.yaml").write_text(settings)
    assert main(["fit", "--config=config.yaml", f"--data.root={colour_folder}", *SMALL]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


NAMED = (["--config", "{}"], ["--config={}"], ["-c", "{}"], ["-c{}"], ["-c={}"])


@pytest.mark.parametrize("named", [*NAMED, ["--data", "{}"], ["--model={}"], ["--trainer", "{}"]])
def test_a_config_that_is_a_pipe_is_not_waited_for(colour_folder: Path, named: list[str]) -> None:
    os.mkfifo("pipe")
    for name in ("pipe", "/dev/zero"):
        options = [option.format(name) for option in named]
        assert main(["fit", *options, f"--data.root={colour_folder}"]) == 2


@pytest.mark.parametrize("named", NAMED)
def test_a_config_that_is_not_there_is_one_line(
    named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *(option.format("gone.yaml") for option in named)]) == 2
    expected = "finetune: Expected a YAML file at gone.yaml, found nothing; check --config.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "content", [[], {"members": {"../x": []}}, {"members": []}, {"shared": []}]
)
def test_a_group_of_other_types_is_one_line(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "members.json").write_text(json.dumps(content))
    for call in (["fit", "--resume"], ["average", "--output=x.ckpt"]):
        assert main([*call, str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "members.json" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--imports=stranger_code", "--track-to=attacker", "--seeds=2"])
def test_a_group_decides_nothing_that_the_command_line_must_say(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ({"members": {"seed-0": [option]}}, {"members": {}, "shared": [option]}):
        (tmp_path / "members.json").write_text(json.dumps(content))
        assert main(["fit", "--resume", str(tmp_path)]) == 2
        assert "on the command line" in capsys.readouterr().err


def test_a_group_names_no_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    for options in (["--trainer.callbacks=pipe"], ["--config", "pipe"], ["--trainer=/dev/zero"]):
        (tmp_path / "members.json").write_text(json.dumps({"members": {"seed-0": options}}))
        assert main(["fit", "--resume", str(tmp_path)]) == 2
        assert "pipe" in capsys.readouterr().err


def test_a_finetune_py_of_the_working_directory_is_never_run(tmp_path: Path) -> None:
    Path("finetune.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    problem = fit_in_a_process("seed-0", ["--data.root", "nowhere"])
    assert problem is not None
    assert problem.startswith("Expected a folder")
    assert not (tmp_path / "ran").exists()


def test_a_member_is_fitted_if_its_run_folder_says_so(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [["--trainer.devices=1"]] * 2
    monkeypatch.setattr("finetune.commands.multi_fit.device_options", lambda _: places)
    monkeypatch.setattr("finetune.commands.multi_fit.fit_in_a_process", lambda *_: None)
    fit = ["fit", f"--data.root={colour_folder}", *SMALL, "--seeds=2", "--name=group"]
    assert main(fit) == 1
    assert "seed-0 failed: it ended" in capsys.readouterr().err
