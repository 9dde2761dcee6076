from dataclasses import replace

import pytest

from finetune.training.recipe import OF_CLOSED_FORM, RULES, Facts, choose_image_size, choose_recipe
from finetune.training.strategies import epochs_of, phases_of

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
FACTS = Facts(
    class_counts=[100, 98],
    pretrained=True,
    stages=STAGES,
    can_keep=True,
    on_cpu=True,
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
        replace(FACTS, class_counts=[400, 1]),
        replace(FACTS, balanced=True),
        replace(FACTS, seconds=5.0),
    ):
        recipe = choose_recipe(facts, {"strategy": "auto"})
        assert all(choice.reason for choice in recipe)
        whole = RULES if recipe[0].value != "head" else OF_CLOSED_FORM
        assert {choice.name for choice in recipe} == set(whole)
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
        ({"seconds": 20.0}, "head"),
        ({"seconds": 20.0, "pretrained": False}, "all"),
        ({"seconds": 600.0}, "partial:2"),
    ],
)
def test_strategy(change, strategy):
    assert values(replace(FACTS, **change))["strategy"] == strategy


def test_precision_is_half_where_the_device_is_fast_at_it():
    for facts, precision in (
        (FACTS, "32-true"),
        (replace(FACTS, on_cpu=False), "32-true"),
        (replace(FACTS, on_cpu=False, fast_at_bf16="H100"), "bf16-mixed"),
    ):
        assert values(facts)["precision"] == precision
    given = values(replace(FACTS, on_cpu=False, fast_at_bf16="H100"), precision="16-mixed")
    assert given["precision"] == "16-mixed"


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


@pytest.mark.parametrize(
    ("counts", "on_cpu", "size"),
    [
        ([98, 98], True, 32),  # the usual, from about six steps an epoch
        ([60] * 12, True, 32),
        ([60, 60], True, 16),
        ([12, 12], True, 8),
        ([2, 1], True, 8),
        ([98, 98], False, 32),
        ([15_000, 15_000], True, 32),
        ([15_000, 15_000], False, 64),
    ],
)
def test_batch_size(counts, on_cpu, size):
    facts = replace(FACTS, class_counts=counts, on_cpu=on_cpu)
    assert values(facts, strategy="all")["batch_size"] == size


def test_a_batch_size_by_hand_decides_the_epochs():
    large, small = values(FACTS, batch_size=64), values(FACTS, batch_size=8)
    assert large["batch_size"] == 64
    assert large["epochs"] * -(-198 // 64) == pytest.approx(100, abs=4)
    assert small["epochs"] * -(-198 // 8) == pytest.approx(100, abs=25)


@pytest.mark.parametrize(
    ("short_side", "size"),
    [(200, 64), (64, 64), (56, 64), (47, 32), (32, 32), (10, 32), (None, 64)],
)
def test_a_network_from_scratch_sees_images_about_as_large_as_they_are(short_side, size):
    choice = choose_image_size(64, pretrained=False, short_side=short_side)
    assert (choice.name, choice.value) == ("image_size", size)


def test_a_pretrained_network_keeps_the_size_it_knows():
    assert choose_image_size(224, pretrained=True, short_side=48).value == 224


def test_a_network_made_for_less_than_a_step_keeps_its_size():
    assert choose_image_size(28, pretrained=False, short_side=20).value == 28


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "no class is much rarer"),
        ({"class_counts": [50, 10]}, "no class is much rarer"),
        ({"class_counts": [60, 10]}, "6 to 1"),
        ({"class_counts": [60, 0]}, "60 to 1"),
        ({"class_counts": [600, 10], "balanced": True}, "drawn equally often"),
    ],
)
def test_class_weights_are_left_to_the_user_and_the_reason_told(change, reason):
    recipe = {choice.name: choice for choice in choose_recipe(replace(FACTS, **change), {})}
    assert recipe["class_weights"].value == "none"
    assert reason in recipe["class_weights"].reason
    assert values(replace(FACTS, **change), class_weights="balanced")["class_weights"] == "balanced"


def test_auto_means_not_given():
    recipe = choose_recipe(FACTS, dict.fromkeys(RULES, "auto"))
    assert recipe == choose_recipe(FACTS, {})


def test_a_time_limit_is_told_where_it_shortens():
    (epochs,) = (c for c in choose_recipe(replace(FACTS, seconds=300), {}) if c.name == "epochs")
    assert "fewer" in epochs.reason


def test_a_closed_form_needs_no_rates():
    found = values(replace(FACTS, class_counts=[3, 3]))
    assert set(found) == {"strategy", "refit", "epochs", "augmentation", "class_weights"}


@pytest.mark.parametrize(
    ("change", "refit"),
    [
        ({}, True),
        ({"held_out": 0}, False),
        ({"val_is_given": True}, False),
        ({"is_fold": True}, False),
        ({"pretrained": False}, False),
        ({"closed_form": False}, False),
        ({"class_counts": [1000, 981]}, False),
    ],
)
def test_a_closed_form_learns_from_few_val_images_too(change, refit):
    assert values(replace(FACTS, **{"held_out": 20, **change}))["refit"] is refit


def test_a_final_layer_without_closed_form_gets_epochs():
    assert values(FACTS, strategy="head")["epochs"] == 1
    facts = replace(FACTS, closed_form=False)
    assert values(facts, strategy="head")["epochs"] > 1


def test_several_labels_are_told_what_stands_in_for_class_weights():
    rare = replace(FACTS, class_counts=[400, 1])
    for facts, word in ((rare, "give balanced"), (replace(rare, one_class=False), "thresholds")):
        (choice,) = (each for each in choose_recipe(facts, {}) if each.name == "class_weights")
        assert (choice.value, word in choice.reason) == ("none", True)
