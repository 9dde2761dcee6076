"""What is taken where no backbone is named."""

import pytest

from finetune.networks import defaults
from finetune.networks.catalogue import COMMERCIAL, catalogue
from finetune.networks.defaults import ON_ACCELERATOR, ON_CPU, default_backbone
from finetune.networks.offline_weights import offline_backbones


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One that answers; each question is counted."""
    asked: list[str] = []
    monkeypatch.setattr(defaults, "hub_refusal", lambda: asked.append("asked"))
    return asked


def test_the_default_depends_on_where_networks_compute(hub: list[str]) -> None:
    assert default_backbone(True, on_accelerator=True)[0] == ON_ACCELERATOR
    assert default_backbone(True, on_accelerator=False)[0] == ON_CPU
    known = {each.full_name: each.licence for each in catalogue()}
    assert {known[ON_ACCELERATOR], known[ON_CPU]} <= COMMERCIAL


def test_without_a_hub_an_installed_one_is_taken_and_this_is_said() -> None:
    name, reason = default_backbone(True, on_accelerator=False)
    assert name == offline_backbones()[0]
    assert ON_CPU in reason
    assert "cannot be fetched" in reason


def test_where_nothing_is_installed_the_message_is_left_to_who_fetches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "offline_backbones", list)
    assert default_backbone(True, on_accelerator=False)[0] == ON_CPU


@pytest.mark.parametrize("pretrained", [False, "weights.safetensors"])
def test_the_hub_is_not_asked_where_its_weights_are_not_wanted(
    pretrained: bool | str, hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_backbone(pretrained, on_accelerator=False)[0] == ON_CPU
    monkeypatch.setattr(defaults, "needs_no_hub", lambda name: True)
    assert default_backbone(True, on_accelerator=False)[0] == ON_CPU
    assert hub == []
