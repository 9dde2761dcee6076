from types import SimpleNamespace

import pytest

from finetune.networks.capacity import data_advice


@pytest.mark.parametrize(
    ("parameters", "images", "classes", "recommendation"),
    [
        (100, 400, 2, "scratch"),
        (100, 399, 2, "all"),
        (1_000_000, 20, 4, "head"),
        (1_000_000, 40, 4, "partly"),
        (1_000_000, 400, 4, "all"),
        (0, 400, 4, "all"),
    ],
)
def test_the_recommendation_follows_the_images_of_a_class(
    parameters: int, images: int, classes: int, recommendation: str
) -> None:
    assert data_advice(parameters, images, classes).recommendation == recommendation


def test_the_rule_of_thumb_is_four_images_a_weight() -> None:
    advice = data_advice(1000, 100, 5)
    assert advice.images_wanted == 4000
    assert advice.images_per_weight == 0.1
    assert advice.images_per_class == 20
    assert "10 weights an image" in str(advice)
    assert "rule of thumb" in str(advice)


def test_more_images_never_ask_for_less_training() -> None:
    order = ["head", "partly", "all", "scratch"]
    ranks = [
        order.index(data_advice(500, images, 3).recommendation) for images in range(0, 4000, 10)
    ]
    assert ranks == sorted(ranks)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="a class"):
        data_advice(10, 10, 0)


@pytest.mark.parametrize(
    ("strategy", "parameters"), [("head", 3 * 65), ("partial:1", 3 * 65 + 18_560), ("all", 23_891)]
)
def test_a_fit_compares_what_its_strategy_trains(strategy: str, parameters: int) -> None:
    from finetune.commands.apply_recipe import does_the_data_suffice
    from finetune.training.classifier import ImageClassifier

    classifier = ImageClassifier(
        ["a", "b", "c"],
        backbone="baseline_cnn",
        pretrained=False,
        network_options={"size": "tiny"},
        strategy=strategy,
    )
    counts = {"a": 10, "b": 20, "c": 30}
    data = SimpleNamespace(class_counts=lambda split: counts, images=lambda split: range(60))
    text = does_the_data_suffice(SimpleNamespace(model=classifier, datamodule=data))
    assert text.startswith(f"{parameters:,} trainable parameters on 60 images of 3 classes")
