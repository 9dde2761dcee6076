"""``finetune models``: the backbones and baselines that can be named."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from finetune.commands.parsing import Parser
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.networks.catalogue import Listed

COLUMNS = ("name", "parameters", "pixels", "licence")


def main(arguments: list[str]) -> int:
    """List names with their size, and what the weights are."""
    parser = Parser(
        prog="finetune models",
        description="List networks by name: parameters, pixels, and of published weights the data "
        "and the licence, as timm says them.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, such as 'resnet*'")
    parser.add_argument(
        "--pretrained", action="store_true", help="only those with weights, a line for each tag"
    )
    parser.add_argument("--sort", choices=COLUMNS, default="name", help="the column to sort by")
    parser.add_argument(
        "--licence",
        help="only weights with this one; commercial: with one that allows any use (Apache-2.0, "
        "MIT, BSD-3-Clause, CC-BY-4.0)",
    )
    options = parser.parse_args(arguments)

    from finetune.networks.catalogue import COMMERCIAL, listed

    found = listed(options.pattern, tags=options.pretrained or options.licence is not None)
    if options.licence is not None:
        wanted = {options.licence.lower()} if options.licence != "commercial" else COMMERCIAL
        found = [each for each in found if each.licence in wanted]
    if not found:
        licence = f" under the licence {options.licence}" if options.licence else ""
        raise UsageError(
            f"Expected a pattern that some network matches{licence}, found {options.pattern!r}; "
            f"try '*{options.pattern.strip('*')}*'."
        )
    if options.sort != "name":
        column = attrgetter(options.sort)
        found.sort(key=lambda each: (not column(each), column(each) or 0))  # the unknown last
    _print(found)
    return 0


def _print(found: list[Listed]) -> None:
    rows = [("name", "parameters", "pixels", "pretrained on", "licence")]
    for each in found:
        rows.append(
            (
                each.full_name,
                "" if each.parameters is None else f"{each.parameters / 1e6:.1f} M",
                str(each.pixels),
                each.data or ("yes" if each.tag else "no"),
                each.licence,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, data, licence in rows:
        cells = [f"{name:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=False)]
        print("  ".join([*cells, f"{data:<{widths[3]}}", licence]).rstrip())
