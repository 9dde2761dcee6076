"""``finetune models``: the backbones and baselines that can be named."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Literal

from finetune.commands.terminal import aligned
from finetune.commands.verb import verb
from finetune.errors import UsageError

if TYPE_CHECKING:
    from finetune.networks.catalogue import Listed


@verb
def models(
    pattern: str = "*",
    *,
    pretrained: bool = False,
    sort: Literal["name", "parameters", "pixels", "licence"] = "name",
    licence: str | None = None,
    quiet: bool = False,
) -> list[Listed]:
    """List networks by name: parameters, pixels, and of published weights the data and the licence.

    Args:
        pattern: shell pattern, such as 'resnet*'.
        pretrained: only those with weights, a line for each tag.
        sort: the column to sort by.
        licence: only weights with this one; commercial: with one that allows any use (Apache-2.0,
            MIT, BSD-3-Clause, CC-BY-4.0).
        quiet: print nothing.

    Returns:
        A row each, as timm says it: ``full_name``, ``parameters``, ``pixels``, ``data`` and
        ``licence``.

    Raises:
        UsageError: no network of that pattern, or none under that licence.
    """
    from finetune.networks.catalogue import listed, under_licence

    found = listed(pattern, tags=pretrained or licence is not None)
    if licence is not None:
        found = [each for each in found if each.licence in under_licence(licence)]
    if not found:
        under = f" under the licence {licence}" if licence else ""
        raise UsageError(
            f"Expected a pattern that some network matches{under}, found {pattern!r}; "
            f"try '*{pattern.strip('*')}*'."
        )
    if sort != "name":
        column = attrgetter(sort)
        found.sort(key=lambda each: (not column(each), column(each) or 0))  # the unknown last
    _print(found)
    return found


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
    print("\n".join(aligned(rows, left={0, 3, 4})))
