"""What can be named as a backbone, from a snapshot of timm: told at once, without importing it.

``catalogue.csv`` is written by ``benchmarks/make_catalogue.py``. Where another timm is installed
than it was made from, that one is asked what it has: names beyond the snapshot are listed without
what takes building them, and those that it lacks are left out.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from pathlib import Path

FILE = Path(__file__).with_name("catalogue.csv")
HEADER = "# timm {version}\n"
# What allows any use, by what timm says; other licences are to be read.
COMMERCIAL = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}
NON_COMMERCIAL = {
    "cc-by-nc-4.0",
    "apple-amlr",
    "fair-noncommercial-research-license",
    "seer-license",
}
# Sets of images that tags name: in1k is ImageNet's usual part, in12k and in21k are larger ones.
_DATA = re.compile(
    r"in\d+k|laion\w+|webli|openai|jft|yfcc\w+|datacomp\w+|dfn\w+|lvd\w+|ig1b|merged2b|bamboo"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A network that can be named.

    Attributes:
        name: of the architecture.
        tag: of the published weights; empty where there are none.
        parameters: with the published final layer; None where not counted.
        pixels: side of the images that it was made for.
        licence: of the weights, as timm says it; empty where it does not.
    """

    name: str
    tag: str
    parameters: int | None
    pixels: int
    licence: str

    @property
    def full_name(self) -> str:
        """With the tag, as ``--model.backbone`` takes it."""
        return f"{self.name}.{self.tag}" if self.tag else self.name

    @property
    def data(self) -> str:
        """What the weights were trained on, as far as the tag tells, the last at the end."""
        found = (_DATA.fullmatch(part) for part in self.tag.split("_"))
        return " ".join(match[0] for match in found if match)


def listed(pattern: str = "*", *, tags: bool = False) -> list[Listed]:
    """Networks whose name matches a shell pattern, in natural order.

    Args:
        pattern: of the name, with or without its tag.
        tags: one for each published tag, instead of one an architecture with its default tag;
            also where the pattern has a dot.
    """
    every = catalogue()
    if not tags and "." not in pattern:
        every = list({each.name: each for each in reversed(every)}.values())[::-1]
        return [each for each in every if fnmatchcase(each.name, pattern)]
    return [
        each
        for each in every
        if each.tag and (fnmatchcase(each.name, pattern) or fnmatchcase(each.full_name, pattern))
    ]


def catalogue() -> list[Listed]:
    """Every architecture and tag, the default tag of an architecture first."""
    made_from, known = snapshot()
    if made_from == version("timm"):
        return known
    return sorted(_installed(known), key=lambda each: _naturally(each.name))


@cache
def snapshot() -> tuple[str, list[Listed]]:
    """The version of timm that the committed file was made from, and its rows."""
    with FILE.open(encoding="utf-8", newline="") as file:
        made_from = file.readline().split()[-1]
        rows = [
            Listed(
                row["name"],
                row["tag"],
                int(row["parameters"]),
                int(row["pixels"]),
                row["licence"],
            )
            for row in csv.DictReader(file)
        ]
    return made_from, rows


def published() -> list[str]:
    """Full names of what the installed timm and we have, the default tag of each first."""
    import timm

    from finetune.networks import baselines as _register_baselines  # noqa: F401

    tagged: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for name in timm.list_models(pretrained=True):
        tagged[name.partition(".")[0]].append(name)
    for architecture, names in tagged.items():
        default = f"{architecture}.{timm.models.get_pretrained_cfg(architecture).tag}"
        names.sort(key=lambda name: name != default)
    return [name for architecture, names in tagged.items() for name in names or [architecture]]


def licence_of(name: str) -> str:
    """The licence of a network's own weights, as the installed timm says it; empty: unknown."""
    import timm

    config = None if ":" in name else timm.models.get_pretrained_cfg(name)
    licence = None if config is None else config.license
    return "" if licence in (None, "unknown") else str(licence)


def under_licence(wanted: str) -> set[str]:
    """The licences that are meant by one, or by ``commercial``: those that allow any use."""
    return COMMERCIAL if wanted.lower() == "commercial" else {wanted.lower()}


def forbids_business(licences: str) -> bool:
    """Whether one of several licences, divided by commas, is for other than commercial use."""
    return bool(NON_COMMERCIAL & set(licences.split(", ")))


def _installed(known: Iterable[Listed]) -> list[Listed]:
    import timm

    by_name = {each.full_name: each for each in known}
    found = []
    for name in published():
        if name not in by_name:
            config = timm.models.get_pretrained_cfg(name)
            architecture, _, tag = name.partition(".")
            pixels = config.input_size[-1]
            by_name[name] = Listed(architecture, tag, None, pixels, licence_of(name))
        found.append(by_name[name])
    return found


def _naturally(name: str) -> list[int | str]:
    """Sorts ``resnet18`` before ``resnet101``, as timm does."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]
