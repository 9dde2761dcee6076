"""Networks by name: any timm classifier or baseline, with weights and a new final layer."""

from __future__ import annotations

import difflib
from typing import Any, cast, get_args

import timm
import timm.data
import torch
from torch import nn

from finetune.errors import NetworkError, PretrainedWeightsError, UnknownBackboneError
from finetune.networks import baselines as _register_baselines  # noqa: F401
from finetune.networks.final_layer import AUXILIARY_HEAD
from finetune.networks.image_network import ImageNetwork
from finetune.networks.pretrained import find_weights
from finetune.networks.staged import read_stages
from finetune.spec.network import STAGES, NetworkSpec
from finetune.spec.preprocessing import Interpolation, Preprocessing

# What a published configuration may say of a fit, and not of the network.
OF_A_FIT = ("num_classes", "in_chans", "drop_rate", "drop_path_rate")


def network_spec(
    name: str, *, in_chans: int = 3, image_size: int | None = None, **options: Any
) -> NetworkSpec:
    """What a name and its options mean: the one place that asks timm, or a hub, about a name.

    Args:
        name: what ``timm.create_model`` takes, ``baseline_*``, ``hf-hub:...`` and
            ``local-dir:...`` included.
        in_chans, image_size, options: as for :func:`create_network`.

    Raises:
        UnknownBackboneError: no network has this name, or its configuration cannot be had.
    """
    if in_chans < 1:
        raise NetworkError(f"Expected in_chans of at least 1, found {in_chans}; 3 is colour.")
    check_name(name)
    if ":" in name:
        config, architecture, arguments = _published(name)
        tag = None
    else:
        current = timm.models.get_deprecated_models().get(name) or name
        found = timm.models.get_pretrained_cfg(current)
        config = {} if found is None else found.to_dict()
        architecture, tag = timm.models.split_model_name_tag(current)
        arguments = {}
    arguments = {key: arguments[key] for key in arguments if key not in OF_A_FIT}
    if config.get("fixed_input_size") or "img_size" in arguments:
        own = arguments.get("img_size", config["input_size"][-2:])
        arguments["img_size"] = _side(own) if image_size is None else image_size
    return NetworkSpec(architecture, {**arguments, "in_chans": in_chans, **options}, tag or None)


def create_network(
    name: str,
    num_classes: int,
    *,
    pretrained: bool | str = False,
    in_chans: int = 3,
    image_size: int | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    **options: Any,
) -> ImageNetwork:
    """Build a backbone or a baseline whose final layer answers with ``num_classes`` logits.

    The whole network is loaded strictly, with the final layer of the weights; only then the
    backbone's own ``reset_classifier`` replaces that layer.

    Args:
        name: what ``timm.create_model`` takes, ``baseline_*`` included.
        num_classes: width of the new final layer, at least 1.
        pretrained: False for random weights; True for the backbone's own; or the path of a
            ``.safetensors``, ``.pth`` or ``.ckpt`` file with weights of the same backbone.
        in_chans: channels of the images; the first layer of pretrained weights is adapted.
        image_size: only networks that are built for one size (vision transformers) need it.
        drop_rate, drop_path_rate: dropout before the final layer, stochastic depth; in [0, 1).
        options: further arguments of the network itself, as timm names them.

    Raises:
        UnknownBackboneError: no network has this name; the message lists the nearest.
        PretrainedWeightsError: the weights cannot be had or do not fit.
        NetworkError: the network refuses an option.

    Examples:
        >>> network = finetune.create_network("resnet18", num_classes=5)
        >>> network(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 5])
    """
    return build_network(
        network_spec(name, in_chans=in_chans, image_size=image_size, **options),
        num_classes,
        pretrained=pretrained,
        source=name,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def build_network(
    spec: NetworkSpec,
    num_classes: int,
    *,
    pretrained: bool | str = False,
    source: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ImageNetwork:
    """The network of a spec; asks nobody, unless for pretrained weights.

    Args:
        spec: of :func:`network_spec`, or from a checkpoint.
        num_classes, pretrained, drop_rate, drop_path_rate: as for :func:`create_network`.
        source: the name whose own weights are meant; that of the spec where it is not given.

    Raises:
        UnknownBackboneError: this timm has no such architecture.
        PretrainedWeightsError: the weights cannot be had or do not fit.
        NetworkError: the network refuses an argument.
    """
    if num_classes < 1:
        raise NetworkError(f"Expected at least one class, found num_classes={num_classes}.")
    _check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
    check_name(spec.architecture)
    arguments = {**spec.arguments, "drop_rate": drop_rate}
    stages = arguments.pop(STAGES, None)
    if drop_path_rate:  # only some networks take it
        arguments["drop_path_rate"] = drop_path_rate
    name = source or spec.name
    if not pretrained:
        network = _build(
            spec.name if _is_published(spec.name) else spec.architecture,
            # The size is an argument, or none: another timm's configuration does not decide it.
            pretrained_cfg_overlay={"fixed_input_size": "img_size" in arguments},
            num_classes=num_classes,
            **arguments,
        )
        if stages is not None:
            read_stages(network, stages)
        return network
    weights = find_weights(name if pretrained is True else spec.architecture, pretrained)
    try:
        network = _build(
            name,
            pretrained=True,
            pretrained_cfg_overlay={**weights.overlay, "num_classes": weights.num_classes},
            num_classes=weights.num_classes,
            **arguments,
        )
    except RuntimeError as error:
        raise PretrainedWeightsError(
            f"Expected weights of {name} in {pretrained}, found other tensors "
            f"({_first_mismatch(error)}); give weights of this very backbone."
        ) from error
    # timm keeps the overlay with the network: a second copy of all weights, and no plain data.
    network.pretrained_cfg = {**network.pretrained_cfg, "state_dict": None}
    network.reset_classifier(num_classes)
    auxiliary = getattr(network, AUXILIARY_HEAD, None)
    if auxiliary is not None:
        auxiliary.fc = nn.Linear(auxiliary.fc.in_features, num_classes)
    if stages is not None:
        read_stages(network, stages)
    return network


def preprocessing_of(
    name: str, *, in_chans: int = 3, image_size: int | None = None
) -> Preprocessing:
    """Image size, crop, interpolation and statistics that the network was pretrained with.

    Args:
        name: a timm name or a baseline.
        in_chans: for anything but 3, the statistics are averaged over the colour channels.
        image_size: another size than the network's own, in pixels.
    """
    check_name(name)
    with torch.device("meta"):
        config = timm.data.resolve_model_data_config(timm.create_model(name))
    _, height, width = config["input_size"]
    if height != width:
        raise NetworkError(
            f"Expected square images, found {name} for {height}x{width} pixels; "
            "choose another backbone."
        )
    mean, std = config["mean"], config["std"]
    if in_chans != len(mean):
        mean, std = (sum(mean) / len(mean),) * in_chans, (sum(std) / len(std),) * in_chans
    interpolation = config["interpolation"]
    preprocessing = Preprocessing(
        image_size=height,
        mean=tuple(mean),
        std=tuple(std),
        crop_fraction=config["crop_pct"],
        # "random" and the like are training settings of timm's.
        interpolation=cast(Interpolation, interpolation)
        if interpolation in get_args(Interpolation)
        else "bicubic",
    )
    return preprocessing.with_image_size(image_size)


def check_name(name: str) -> None:
    """Refuse a name that no network has, and offer the nearest ones.

    Raises:
        UnknownBackboneError: with up to three suggestions.
    """
    if ":" in name:
        return
    if timm.models.is_model(name):
        if _is_published(name):
            return
        tags = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
        raise UnknownBackboneError(
            f"Expected a published tag of the weights, found {name!r}; there are {', '.join(tags)}."
        )
    nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "see `finetune models`."
    raise UnknownBackboneError(
        f"Expected the name of a timm classifier or a baseline, found {name!r}; {hint}"
    )


def _check_rates(**rates: float) -> None:
    for option, rate in rates.items():
        if not 0 <= rate < 1:
            raise NetworkError(f"Expected {option} to be at least 0 and below 1, found {rate}.")


def _is_published(name: str) -> bool:
    """Whether a known architecture is known with this tag, or has none."""
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        return False
    return True


def _build(name: str, **arguments: Any) -> ImageNetwork:
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        raise NetworkError(
            f"Expected options that {name} takes, found one that it does not: {error}; "
            "mend --model.network_options, drop_rate or drop_path_rate."
        ) from error


def _published(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Configuration, architecture and arguments of a network on a hub or in timm's own folder."""
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    source, place = timm.models.parse_model_name(name)
    load = load_model_config_from_path if source == "local-dir" else load_model_config_from_hf
    try:
        config, architecture, arguments = load(place)
    except Exception as error:  # no folder, no connection, no such repository, no JSON
        raise UnknownBackboneError(
            f"Expected the configuration of a timm network at {name}, found none "
            f"({_first_line(error)}); check the name and the connection."
        ) from error
    check_name(architecture)
    return config, architecture, dict(arguments or {})


def _side(size: Any) -> Any:
    """One number for a square."""
    return size[0] if isinstance(size, tuple | list) and len(set(size)) == 1 else size


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:120]


def _first_mismatch(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0])[:140]
