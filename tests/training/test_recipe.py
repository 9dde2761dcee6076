from dataclasses import replace

import pytest

from finetune.training.recipe import Facts, choose_recipe
from finetune.training.strategies import epochs_of, phases_of

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
FACTS = Facts(
    class_counts=[100, 98],
    pretrained=True,
    stages=STAGES,
    can_keep=True,
    on_cpu=True,
    batch_size=32,
)


def values(facts, **given):
    return {choice.name: choice.value for choice in choose_recipe(facts, given)}


def test_every_choice_has_a_reason_and_can_be_run():
    for facts in (
        FACTS,
        replace(FACTS, on_cpu=False),
        replace(FACTS, pretrained=False),
        replace(FACTS, class_counts=[5, 4]),
        replace(FACTS, can_keep=False),
        replace(FACTS, class_counts=[40_000, 30_000]),
    ):
        recipe = choose_recipe(facts, {"strategy": "auto"})
        assert all(choice.reason for choice in recipe)
        found = {choice.name: choice.value for choice in recipe}
        phases = phases_of(found["strategy"], STAGES)
        assert sum(epochs_of(phases, found["epochs"])) >= (found["strategy"] != "head")


@pytest.mark.parametrize(
    ("change", "strategy"),
    [
        ({}, "partial:2"),
        ({"on_cpu": False}, "head-then-all"),
        ({"can_keep": False}, "head-then-all"),
        ({"pretrained": False}, "all"),
        ({"class_counts": [9, 10]}, "head"),
    ],
)
def test_strategy(change, strategy):
    assert values(replace(FACTS, **change))["strategy"] == strategy


def test_what_is_given_is_kept():
    given = {"strategy": "all", "epochs": 7, "lr": 0.5, "backbone_lr_factor": 0.2}
    found = values(FACTS, **given)
    assert {name: found[name] for name in given} == given
    recipe = {choice.name: choice for choice in choose_recipe(FACTS, given)}
    assert recipe["lr"].reason == "as given"
    assert recipe["label_smoothing"].reason != "as given"


def test_little_data_gets_more_epochs_and_the_steps_stay_in_bounds():
    few = values(replace(FACTS, class_counts=[30, 30]))["epochs"]
    many = values(replace(FACTS, class_counts=[3000, 3000]))["epochs"]
    assert few > many >= 3


def test_a_closed_form_needs_no_rates():
    assert set(values(replace(FACTS, class_counts=[3, 3]))) == {"strategy", "epochs"}


def test_a_final_layer_without_closed_form_gets_epochs():
    assert values(FACTS, strategy="head")["epochs"] == 1
    facts = replace(FACTS, closed_form=False)
    assert values(facts, strategy="head")["epochs"] > 1
