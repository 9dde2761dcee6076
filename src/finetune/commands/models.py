"""``finetune models``: the backbones and baselines that can be named."""

from __future__ import annotations

from finetune.commands.parsing import Parser
from finetune.errors import UsageError


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
    print(f"{'name':<{width}}  parameters  pixels  pretrained")
    for name in names:
        facts = network_facts(name)
        weights = "yes" if facts.pretrained else "no"
        print(f"{name:<{width}}  {facts.parameters / 1e6:8.1f} M  {facts.image_size:>6}  {weights}")
    return 0
