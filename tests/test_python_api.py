"""What the commands do, Python can: with the same figures, and the caller's process as it was."""

import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import finetune
from finetune.cli import main
from finetune.commands.python_options import GIVEN_ELSEWHERE, as_arguments, option_names
from finetune.errors import CheckpointError, FinetuneError, UsageError

SMALL = {
    "backbone": "test_resnet",
    "pretrained": False,
    "image_size": 32,
    "accelerator": "cpu",
    "max_epochs": 1,
    "cache": "off",
}
TYPED = (
    "--model.backbone=test_resnet",
    "--model.pretrained=false",
    "--model.image_size=32",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--data.cache=off",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, colour_folder: Path) -> finetune.Run:
    """A finished run that no test may change."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    return finetune.fit(colour_folder, name="x", runs=runs, seed=1, quiet=True, **SMALL)


def test_a_fit_gives_what_the_command_gives(run: finetune.Run, colour_folder: Path) -> None:
    assert run.folder.name == "x-1"
    call = ["fit", f"--data.root={colour_folder}", "--name=x", "--seed_everything=1", *TYPED]
    assert main(call) == 0
    typed = Path("runs/x-1")
    assert json.loads((typed / "metrics.json").read_text())["val"] == run.metrics["val"]
    ours, theirs = (
        torch.load(path / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
        for path in (run.folder, typed)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (
        yaml.safe_load((path / "config.yaml").read_text()) for path in (run.folder, typed)
    )
    for config in (ours, theirs):
        del config["runs"]
        assert config["trainer"].pop("devices") in ("1", "auto")
    assert ours == theirs


def test_a_run_answers_and_is_tested(run: finetune.Run, colour_folder: Path, capsys) -> None:
    files = sorted((colour_folder / "red").iterdir())
    predictor = run.predictor()
    assert predictor.class_names == ("blue", "green", "red")
    assert predictor.preprocessing.image_size == 32
    answers = predictor([files[0], colour_folder / "green"])
    assert len(answers.labels) == 13
    expected = finetune.predict(finetune.ImageClassifier.from_checkpoint(run.best), files)
    assert torch.equal(predictor(files).probabilities, expected.probabilities)

    figures = run.test(accelerator="cpu")  # the images are those of the fit
    assert "test: accuracy" in capsys.readouterr().out
    assert run.metrics["test"] == figures
    assert (run.folder / "report" / "index.html").is_file()
    settings = {"accelerator": "cpu", "quiet": True}
    of_the_fit = run.metrics["val"]["nll"]
    for judged in ([run.folder], [run.best, colour_folder]):
        assert finetune.validate(*judged, **settings)["nll"] == pytest.approx(of_the_fit)
    assert capsys.readouterr().out == ""


def test_the_callers_process_stays_as_it_was(
    colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> list:
        numbers = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        shown = warnings.filters[:], warnings.showwarning, sys.stdout, sys.argv[:], os.getcwd()
        levels = [logging.getLogger(f"lightning.{name}").level for name in ("pytorch", "fabric")]
        switches = [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark]
        return [switches, dict(os.environ), *numbers[:2], numbers[2].tolist(), *shown, levels]

    before = state()
    first = finetune.fit(colour_folder, quiet=True, deterministic=True, **SMALL)
    assert state() == before
    with pytest.raises(UsageError):
        finetune.fit(colour_folder, quiet=True, **{**SMALL, "max_epochs": -3})
    assert state() == before
    second = finetune.fit(str(colour_folder), **SMALL)
    assert [first.folder.name, second.folder.name] == ["test_resnet-1", "test_resnet-2"]
    assert first.metrics["val"] == second.metrics["val"]
    out = capsys.readouterr().out
    assert out.count("next: finetune predict") == 1  # the loud one alone


def test_a_fit_in_a_thread_hushes_nobody_else(
    colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[finetune.Run] = []
    settings = {**SMALL, "runs": tmp_path / "elsewhere", "quiet": True}
    thread = threading.Thread(target=lambda: runs.append(finetune.fit(colour_folder, **settings)))
    thread.start()
    while thread.is_alive():
        print("still here")
        thread.join(0.2)
    assert runs[0].best.is_file()
    assert set(capsys.readouterr().out.splitlines()) == {"still here"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbon": "resnet18"}, "found 'backbon'; did you mean backbone?"),
        ({"max_epoch": 3}, "did you mean max_epochs?"),
        ({"trainer": {"precison": "16-mixed"}}, "did you mean trainer.precision?"),
        ({"max_epochs": "many"}, "max_epochs"),
        ({"strategy": "heads"}, "head"),
        ({"seeds": 3}, "once for each member"),
        ({"folds": 3}, "once for each member"),
        ({"devices": 2}, "run `finetune fit`"),
        ({"callbacks": [object()]}, "class_path"),
        ({"monitor": "val/nil"}, "val/nll"),
        ({"limit_val_batches": 2.5}, "limit_val_batches"),
    ],
)
def test_wrong_settings_are_one_clear_error(colour_folder: Path, settings, message: str) -> None:
    with pytest.raises(UsageError) as error:
        finetune.fit(colour_folder, quiet=True, **{**SMALL, **settings})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(Path().glob("runs/*"))


def test_other_errors_are_of_our_tree(run: finetune.Run, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="none"):
        finetune.fit(tmp_path / "none", **SMALL)
    with pytest.raises(CheckpointError):
        finetune.load(tmp_path)
    with pytest.raises(FinetuneError):
        finetune.load(tmp_path / "none.ckpt")
    with pytest.raises(UsageError, match="give data=DIR"):
        finetune.test(run.best)
    with pytest.raises(UsageError, match="did you mean batch_size"):
        finetune.test(run.folder, batchsize=3)


def test_every_option_of_the_command_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--help"])
    shown = re.findall(r"^ +(?:-c.*, )?--([\w.-]+)", capsys.readouterr().out, flags=re.MULTILINE)
    options = {option.replace("-", "_") for option in shown}
    named = set(option_names("fit").values())
    assert named <= options
    sections = {"trainer", "model", "data", "print_config"}  # a whole section's file
    of_several = {"seeds", "folds", "backbones", "engine", "address"}
    by_other_means = GIVEN_ELSEWHERE | {"trainer.strategy"}
    nested = {option for option in options if option.count(".") > 1}
    assert options - named <= sections | of_several | by_other_means | nested


def test_values_are_written_as_they_are_typed() -> None:
    settings = {
        "lr": np.float64(1e-5),
        "image_size": np.int64(32),
        "layer_decay": None,
        "network_options": {"global_pool": "max"},
        "cache_dir": Path("a b"),
        "trainer": {"strategy": "auto"},
        "data.seed": 3,
        "imports": ["a", "b"],
        "time_limit": "10m",
    }
    assert as_arguments("fit", settings) == [
        "--model.lr=1e-05",
        "--model.image_size=32",
        "--model.layer_decay=null",
        '--model.network_options={"global_pool": "max"}',
        "--data.cache_dir=a b",
        "--trainer.strategy=auto",
        "--data.seed=3",
        "--imports=a",
        "--imports=b",
        "--time-limit=10m",
    ]


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, finetune; assert finetune.fit and finetune.Run and finetune.test; "
        "assert not {'torch', 'lightning', 'timm', 'jsonargparse'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def twins(
    run: finetune.Run, tmp_path_factory: pytest.TempPathFactory, colour_folder: Path
) -> list[finetune.Run]:
    """Two runs of one split."""
    runs = tmp_path_factory.mktemp("twins") / "runs"
    return [run, finetune.fit(colour_folder, runs=runs, seed=2, quiet=True, **SMALL)]


def test_fits_are_averaged_combined_and_calibrated_as_typed(
    twins: list[finetune.Run], colour_folder: Path, tmp_path: Path, capsys
) -> None:
    folders = [twin.folder for twin in twins]
    reading = {"cache": "off", "quiet": True}
    files = sorted((colour_folder / "red").iterdir())
    soup = finetune.average(folders, colour_folder, output="average.ckpt", **reading)
    ensemble = finetune.ensemble(folders, output="ensemble.ckpt", quiet=True)
    with pytest.warns(UserWarning, match="hold out at least"):  # Python's own, for it to filter
        calibrated = finetune.calibrate(
            folders[0], colour_folder, output="calibrate.ckpt", **reading
        )
    assert capsys.readouterr().out == ""
    data = [f"--data.root={colour_folder}", "--data.cache=off"]
    for verb, options in (("average", data), ("ensemble", []), ("calibrate", data)):
        given = folders[:1] if verb == "calibrate" else folders
        typed = tmp_path / f"typed-{verb}.ckpt"
        assert main([verb, *map(str, given), *options, f"--output={typed}"]) == 0
        expected = finetune.load(typed)(files)
        assert torch.equal(finetune.load(f"{verb}.ckpt")(files).logits, expected.logits)
    assert soup.score is not None
    assert soup.coefficients == (0.5, 0.5)
    assert len(finetune.load("ensemble.ckpt")(files).member_probabilities) == 2
    assert ensemble.class_names == ("blue", "green", "red")
    assert calibrated.calibration is not None


def test_an_ensemble_is_judged_and_warns_as_python_does(
    twins: list[finetune.Run], colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [twin.folder for twin in twins]
    settings = {"cache": "off", "quiet": True}
    finetune.ensemble(folders, colour_folder, select="learned", output="picked.ckpt", **settings)
    with pytest.raises(FinetuneError, match="helped to pick"):
        finetune.validate("picked.ckpt", colour_folder, **settings)
    with pytest.warns(UserWarning, match="helped to pick"):
        figures = finetune.validate("picked.ckpt", colour_folder, allow_reuse=True, **settings)
    assert 0 <= figures["accuracy"] <= 1
    assert (capsys.readouterr().out, Path("runs/validate-1").is_dir()) == ("", True)


def test_what_is_not_asked_for_is_not_written(twins: list[finetune.Run], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    finetune.average([twin.best for twin in twins], quiet=True)
    finetune.ensemble([twin.best for twin in twins], quiet=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_names_and_places_are_refused(
    twins: list[finetune.Run], colour_folder: Path, tmp_path: Path
) -> None:
    folders = [twin.folder for twin in twins]
    there = tmp_path / "there.ckpt"
    there.write_text("mine")
    for call, message in [
        (lambda: finetune.average(folders, metod="greedy"), "did you mean method"),
        (lambda: finetune.average(folders, method="gredy"), "greedy"),
        (lambda: finetune.average(folders, output=there), "overwrite"),
        (lambda: finetune.average(folders, output=colour_folder / "a.ckpt"), "outside the images"),
        (lambda: finetune.ensemble(folders, select="greedy"), "held-out"),
        (lambda: finetune.calibrate(folders[0], colour_folder, conformall=0.1), "conformal"),
        (lambda: finetune.calibrate(folders[0], colour_folder, batch_size=0), "at least 1"),
        (lambda: finetune.ensemble(folders, calibrate="no"), "true or false"),
        (lambda: finetune.check(colour_folder, duplicate="near"), "did you mean duplicates"),
        (lambda: finetune.report(folders[0], titel="x"), "did you mean title"),
    ]:
        with pytest.raises(UsageError, match=message):
            call()
    assert there.read_text() == "mine"


def test_a_folder_is_checked(colour_folder: Path, tmp_path: Path, capsys) -> None:
    assert finetune.check(colour_folder, cache_dir=tmp_path, quiet=True) == []
    assert capsys.readouterr().out == ""
    own = tmp_path / "own"
    shutil.copytree(colour_folder, own)
    (own / "red" / "00.png").write_bytes(b"no image")
    findings = finetune.check(own, cache_dir=tmp_path)
    assert [each.severity for each in findings] == ["error"]
    assert findings[0].path.name == "00.png"
    assert "1 error" in capsys.readouterr().out


def test_a_run_is_exported(run: finetune.Run, tmp_path: Path) -> None:
    exported = finetune.export(run.folder, "classifier", format="safetensors")
    assert exported.class_names == ("blue", "green", "red")
    assert (tmp_path / "classifier" / "config.json").is_file()


def with_settings(
    function: Callable[..., object], settings: Callable[[dict], dict]
) -> Callable[..., object]:
    return lambda *which, **given: function(*which, **settings(given))


@pytest.mark.slow
def test_the_guide_is_true(
    colour_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for colour, name in (("red", "cat"), ("green", "dog")):
        shutil.copytree(colour_folder / colour, tmp_path / "pets" / name)
    shutil.copy(tmp_path / "pets" / "cat" / "00.png", tmp_path / "pets" / "cat" / "1.jpg")
    shutil.copytree(colour_folder / "blue", tmp_path / "unlabelled")
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "pets" / "dog" / "00.png", tmp_path / "new" / "1.jpg")
    guide = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    small = {**SMALL, "cache": "auto"}
    smaller = {  # each function's settings, for few and small images without a network
        "fit": lambda given: given if "update" in given else {**given, **small},
        "calibrate": lambda given: given | ({"unknown": 0.5} if "unknown" in given else {}),
        "choose": lambda given: {"backbones": "tf_efficientnet_lite0", "offline": True},
    }
    for name, settings in smaller.items():
        monkeypatch.setattr(finetune, name, with_settings(getattr(finetune, name), settings))
    known: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # so few images warn of themselves
        for block in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL):
            exec(block, known)
    assert len(known["answers"].labels) == 13
    assert known["wrong"] == []
    assert len(known["whole"].parts) == 3
    assert "Pets" in Path("report.html").read_text(encoding="utf-8")
