"""``finetune models``: the backbones and baselines that can be named."""

from __future__ import annotations

from finetune.commands.parsing import Parser
from finetune.errors import UsageError

MOST_COUNTED = 200  # building all 1,375 to count takes two minutes


def main(arguments: list[str]) -> int:
    """List names with parameters, image size and whether pretrained weights exist."""
    parser = Parser(
        prog="finetune models",
        description="List networks by name, with their size and whether weights are published.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, such as 'resnet*'")
    parser.add_argument("--pretrained", action="store_true", help="only those with weights")
    options = parser.parse_args(arguments)

    from finetune.networks.factory import network_facts, network_names

    names = network_names(options.pattern, pretrained=options.pretrained)
    if not names:
        raise UsageError(
            f"Expected a pattern that some network matches, found {options.pattern!r}; "
            f"try '*{options.pattern.strip('*')}*'."
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
    return 0
