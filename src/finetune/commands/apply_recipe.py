"""What the recipe chooses for a fit, written into configuration, classifier and data module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.errors import UsageError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from finetune.commands.trainer import FinetuneCLI
    from finetune.runtime import Runtime
    from finetune.training.recipe import Choice

# Where a setting stands in the configuration, unless below ``model``.
SECTIONS = {
    "batch_size": "data.batch_size",
    "augmentation": "data.augmentation",
    "epochs": "trainer.max_epochs",
    "patience": "patience",
    "precision": "trainer.precision",
}


def name_backbone(config: Namespace, runtime: Runtime) -> Choice | None:
    """Where none was named, the backbone by rule, written into the configuration; else None."""
    from finetune.networks.defaults import AUTO, default_backbone
    from finetune.training.recipe import Choice

    model = config.model
    if model.backbone != AUTO:
        return None
    on_accelerator = runtime.device.type != "cpu"
    model.backbone, reason = runtime.agree(
        lambda: default_backbone(model.pretrained, on_accelerator=on_accelerator)
    )
    return Choice("backbone", model.backbone, reason)


def choose_size(config: Namespace) -> Choice | None:
    """Before it is built: the size of what is seen, where neither given nor the backbone's own.

    A baseline that learns from nothing sees about what the images have, for which they are looked
    at; a transformer for far larger images than usual sees the usual size. None where the size was
    given or is the backbone's own; else it is written into the configuration.
    """
    from finetune.networks.baselines import is_baseline

    model = config.model
    if model.image_size is not None:
        return None
    if model.pretrained:
        choice = _usual_size(model.backbone)
    else:
        choice = _size_from_scratch(config) if is_baseline(model.backbone) else None
    if choice is not None:
        model.image_size = choice.value
    return choice


def _usual_size(backbone: str) -> Choice | None:
    from finetune.networks.input_size import smaller_size
    from finetune.training.recipe import Choice

    smaller = smaller_size(backbone)
    if smaller is None:
        return None
    reason = f"positions interpolated; its own {smaller.own} pixels take {smaller.factor:.1f} times"
    return Choice("image_size", smaller.pixels, f"{reason} as many patches")


def _size_from_scratch(config: Namespace) -> Choice:
    from finetune.data.datamodule import ImageFolderDataModule
    from finetune.networks.factory import preprocessing_of
    from finetune.training.recipe import choose_image_size

    images = ImageFolderDataModule(**config.data.as_dict())
    return choose_image_size(
        preprocessing_of(config.model.backbone).image_size,
        pretrained=False,
        short_side=images.median_short_side,
    )


def apply_recipe(cli: FinetuneCLI, *, seconds: float | None = None) -> tuple[Choice, ...]:
    """Choose what was not given, and write it into configuration, classifier and data module.

    Raises:
        UsageError: settings that exclude each other or are out of their range.
    """
    from finetune.training.phases.probe import linear_head
    from finetune.training.recipe import RULES, choose_recipe, facts_about

    _refuse_what_cannot_be(cli)
    pretrained = bool(cli.config.model.pretrained) or cli.checkpoint is not None
    facts = facts_about(
        cli.model,
        cli.datamodule,
        pretrained=pretrained,
        device=cli.runtime.device,
        closed_form=linear_head(cli.model.network) is not None,
        seconds=seconds,
        processes=cli.runtime.world_size,
    )
    given = {name: cli.config[_place(name)] for name in RULES}
    recipe = (*choose_recipe(facts, given), _image_size(cli, pretrained))
    if cli.config.trainer.plugins:  # of which one may decide it
        recipe = tuple(choice for choice in recipe if choice.name != "precision")
    chosen = {choice.name: choice.value for choice in recipe}
    for name, value in chosen.items():
        cli.config[_place(name)] = value
    data = cli.datamodule
    data.apply_recipe(
        augmentation=chosen["augmentation"], batch_size=chosen.get("batch_size", data.batch_size)
    )
    ours = {name: value for name, value in chosen.items() if name not in SECTIONS}
    cli.model.apply_recipe(**ours)
    named = [] if cli.backbone is None else [cli.backbone]
    return (*named, *recipe, *_on_device(cli))


def licence_of_weights(cli: FinetuneCLI) -> list[str]:
    """A line where the weights that a fit begins with are not for every use."""
    from finetune.networks.catalogue import forbids_business

    licence = cli.model.details.get("licence", "")
    if not forbids_business(licence):
        return []
    return [
        f"The weights of {cli.model.backbone} are published under {licence}, for non-commercial "
        "use alone; what is fitted from them is too. See finetune models --licence commercial."
    ]


def _place(name: str) -> str:
    return SECTIONS.get(name, f"model.{name}")


def _on_device(cli: FinetuneCLI) -> list[Choice]:
    """Where images are augmented, if there is a choice. It is the machine's, so never written."""
    from finetune.training.recipe import Choice

    if cli.runtime.device.type == "cpu" and cli.config.data.on_device == "auto":
        return []
    lives_there, reason = cli.datamodule.on_device
    return [Choice("on_device", "yes" if lives_there else "no", reason)]


def _image_size(cli: FinetuneCLI, pretrained: bool) -> Choice:
    from finetune.training.recipe import AS_GIVEN, Choice, choose_image_size

    if cli.image_size is not None:
        return cli.image_size
    if cli.config.model.image_size is not None:
        return Choice("image_size", cli.config.model.image_size, AS_GIVEN)
    return choose_image_size(cli.model.preprocessing.image_size, pretrained=pretrained)


def _refuse_what_cannot_be(cli: FinetuneCLI) -> None:
    from finetune.training.optimizers import check_optimizer

    if cli.datamodule.balanced and cli.model.hparams["class_weights"] != "none":
        raise UsageError(
            "Expected --data.balanced or --model.class_weights, found both, which would weigh the "
            "rare classes twice; leave one out."
        )
    if cli.model.hparams["refit"] and cli.datamodule.split_settings.fold is not None:
        raise UsageError(
            "Expected --model.refit beside fits of one split, found it beside --data.fold, whose "
            "images are to be held out; leave one out."
        )
    check_optimizer(cli.model.hparams["optimizer"])
    if (cli.config.patience or 0) < 0:
        raise UsageError(
            f"Expected --patience of at least 0, found {cli.config.patience}; 0 stops no phase."
        )


def does_the_data_suffice(cli: FinetuneCLI) -> str:
    """How what learns, in the strategy's widest phase, compares with the training images."""
    from finetune.networks.capacity import data_advice
    from finetune.networks.freezing import network_stages
    from finetune.training.strategies import phases_of

    network, counts = cli.model.network, cli.datamodule.class_counts("train")
    stages = network_stages(network)
    lowest = phases_of(cli.model.hparams["strategy"], list(stages))[-1].boundary
    learning = list(stages)[list(stages).index(lowest) :]
    parameters = sum(network.get_parameter(name).numel() for s in learning for name in stages[s])
    images = len(cli.datamodule.images("train"))
    return data_advice(parameters, images, len(counts)).comparison
