"""A file never decides where figures go: entity and run are the account's own, or named."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from finetune.cli import main
from finetune.errors import UsageError
from finetune.training.tracking import configured_loggers, tracked_run
from finetune.training.wandb_account import Destination, permitted

MINE = {"me/cats/mine": "me", "our-team/cats/mine": "me", "our-team/cats/hers": "her"}


class Server:
    """What ``wandb.Api`` says of the account ``me``; counts how often it is asked."""

    asked = 0

    def __init__(self, **settings: Any) -> None:
        type(self).asked += 1
        self.viewer = SimpleNamespace(username="me", entity="me", teams=["our-team"])

    def run(self, path: str) -> Any:
        if path not in MINE:
            raise ValueError(f"Could not find run {path}")
        return SimpleNamespace(user=SimpleNamespace(username=MINE[path]))


class Silent:
    def __init__(self, **settings: Any) -> None:
        raise ConnectionError("no route to host")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key at hand, and a server that knows the account."""
    for name in ("WANDB_MODE", "WANDB_ENTITY", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb, "api", SimpleNamespace(api_key="a key"))
    monkeypatch.setattr(wandb, "Api", Server)
    Server.asked = 0


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("entity", "run", "goes_to"),
    [
        ("me", "mine", "me"),
        (None, "mine", "me"),
        ("our-team", "mine", "our-team"),
        ("our-team", "hers", None),
        ("me", "of-nobody", None),
        (None, "of-nobody", None),
        ("attacker", "mine", None),
        ("attacker", None, None),
        ("", "mine", "me"),
    ],
)
def test_an_earlier_run_is_continued_only_where_this_account_made_it(
    entity: str | None, run: str | None, goes_to: str | None
) -> None:
    wish = Destination("cats", entity, run)
    if goes_to is None:
        with pytest.raises(UsageError, match="of your own"):
            permitted(wish, earlier=True)
    else:
        assert permitted(wish, earlier=True).entity == goes_to


@pytest.mark.usefixtures("online")
def test_a_named_entity_is_permitted_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    wish = Destination("cats", "friends", "theirs")
    assert permitted(wish, ["friends"], earlier=True) == wish
    with pytest.raises(UsageError, match="--track-to"):
        permitted(wish, ["others"], earlier=True)
    monkeypatch.setenv("WANDB_ENTITY", "friends")
    assert permitted(wish, earlier=True) == wish


@pytest.mark.usefixtures("online")
def test_offline_nobody_is_asked_and_a_strangers_entity_is_dropped() -> None:
    wish = Destination("cats", "attacker", "run", "offline")
    assert permitted(wish, earlier=True) == Destination("cats", None, "run", "offline")
    assert permitted(wish, ["attacker"], earlier=True) == wish
    assert Server.asked == 0


@pytest.mark.usefixtures("online")
def test_without_an_answer_nothing_is_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "Api", Silent)
    with pytest.raises(UsageError, match="no answer"):
        permitted(Destination("cats", "me", "mine"), earlier=True)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("entity", ["attacker", "me"])
def test_a_logger_of_a_file_sends_to_own_entities_only(
    tmp_path: Path, entity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = WandbLogger(project="cats", entity=entity)
    if entity == "attacker":
        with pytest.raises(UsageError, match="'attacker'"):
            configured_loggers(logger, tmp_path)
        configured_loggers(logger, tmp_path, ["attacker"])
    else:
        configured_loggers(logger, tmp_path)
    assert f"Weights & Biases: {entity}/cats/(new) (sent now)" in capsys.readouterr().out


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("settings", "environment", "mode"),
    [
        ({}, None, "online"),
        ({"offline": True}, None, "offline"),
        ({"mode": "offline"}, None, "offline"),
        ({"mode": "disabled"}, None, "disabled"),
        ({}, "offline", "offline"),
        ({"mode": "online"}, "dryrun", "offline"),
        ({}, "disabled", "disabled"),
        ({"mode": "disabled"}, "offline", "disabled"),
    ],
)
def test_figures_leave_only_where_settings_and_environment_agree(
    settings: dict[str, Any],
    environment: str | None,
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    logger = WandbLogger(project="cats", **settings)
    configured_loggers(logger, tmp_path)
    assert logger._wandb_init["mode"] == mode
    assert Server.asked == (mode == "online")


@pytest.mark.usefixtures("online")
def test_a_logger_of_a_file_names_no_server_of_its_own(tmp_path: Path) -> None:
    logger = WandbLogger(project="cats", settings={"base_url": "https://attacker.example"})
    with pytest.raises(UsageError, match="WANDB_BASE_URL"):
        configured_loggers(logger, tmp_path)


@pytest.mark.usefixtures("online")
def test_a_resumed_fit_does_not_continue_a_strangers_run(tmp_path: Path) -> None:
    known = {"id": "hers", "project": "cats", "entity": "our-team", "mode": "online"}
    (tmp_path / "tracking.json").write_text(json.dumps(known))
    with pytest.raises(UsageError, match="hers of her"):
        configured_loggers(WandbLogger(project="cats", entity="our-team"), tmp_path)


GOOD = {"id": "mine", "project": "cats", "entity": "me", "mode": "online"}


@pytest.mark.parametrize("key", GOOD)
@pytest.mark.parametrize("value", [-1, True, "", "a/b", "x" * 200, "a\nb", [], {}, ["online"], 1.5])
def test_odd_values_of_tracking_json_are_one_line(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "tracking.json").write_text(json.dumps({**GOOD, key: value}))
    with pytest.raises(UsageError, match=r"tracking\.json") as caught:
        tracked_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("online")
def test_a_test_sends_nothing_to_a_strangers_project(
    colour_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--data.root={colour_folder}", "--data.cache=off", "--trainer.accelerator=cpu"]
    small = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.image_size=32"]
    assert main(["fit", *data, *small, "--model.strategy=head", "--name=run"]) == 0
    opened: list[dict[str, Any]] = []

    def refuse(**settings: Any) -> None:
        opened.append(settings)
        raise AssertionError("a run was opened")

    monkeypatch.setattr(wandb, "init", refuse)
    test = ["test", *data, "--ckpt_path=runs/run-1/checkpoints/best.ckpt"]
    for entity, run in (("attacker", "mine"), (None, "theirs"), ("our-team", "hers")):
        known = {"id": run, "project": "cats", "entity": entity, "mode": "online"}
        Path("runs/run-1/tracking.json").write_text(json.dumps(known))
        assert main(test) == 0
        assert "not sent to Weights & Biases" in capsys.readouterr().out
    Path("runs/run-1/tracking.json").write_text("[" * 100_000)
    assert main(test) == 0
    assert "tracking.json" in capsys.readouterr().out
    assert not opened
    Path("runs/run-1/tracking.json").write_text(json.dumps({**GOOD, "entity": "attacker"}))
    assert main([*test, "--track-to=attacker"]) == 1  # the stand-in's refusal
    assert opened[0]["entity"] == "attacker"
    assert "Weights & Biases: attacker/cats/mine (sent now)" in capsys.readouterr().out
