"""``finetune models``: the backbones and baselines that can be named."""

from __future__ import annotations

from finetune.commands.verb import verb
from finetune.errors import UsageError

MOST_COUNTED = 200  # building all 1,375 to count takes two minutes


@verb
def models(pattern: str = "*", *, pretrained: bool = False, quiet: bool = False) -> list[str]:
    """List networks by name, with their size and whether weights are published.

    Args:
        pattern: shell pattern, such as 'resnet*'.
        pretrained: only those with weights.
        quiet: print nothing.

    Returns:
        The names.

    Raises:
        UsageError: no network of that pattern.
    """
    from finetune.networks.factory import network_facts, network_names

    names = network_names(pattern, pretrained=pretrained)
    if not names:
        raise UsageError(
            f"Expected a pattern that some network matches, found {pattern!r}; "
            f"try '*{pattern.strip('*')}*'."
        )
    width = max(len(name) for name in names)
    counted = len(names) <= MOST_COUNTED
    print(f"{'name':<{width}}  parameters  pixels  pretrained")
    for name in names:
        facts = network_facts(name, count_parameters=counted)
        weights = "yes" if facts.pretrained else "no"
        size = "" if facts.parameters is None else f"{facts.parameters / 1e6:.1f} M"
        print(f"{name:<{width}}  {size:>10}  {facts.image_size:>6}  {weights}")
    if not counted:
        print(
            f"{len(names)} networks; parameters are counted for up to {MOST_COUNTED}: narrow the "
            "pattern: finetune models 'resnet*'"
        )
    return names
