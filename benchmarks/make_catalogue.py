"""Write the catalogue of networks that ``finetune models`` shows, from the installed timm.

python benchmarks/make_catalogue.py    counts parameters on the meta device: some minutes
"""

from __future__ import annotations

import csv
import warnings
from functools import cache
from io import StringIO

import timm
import torch

from finetune.files import write_text
from finetune.networks.catalogue import FILE, HEADER, licence_of, published


@cache
def parameters(architecture: str, classes: int) -> int:
    """With a final layer for so many classes."""
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        network = timm.create_model(architecture, num_classes=classes)
    return sum(value.numel() for value in network.parameters())


def main() -> None:
    """Write the file into the package: one row an architecture and tag, the default tag first."""
    text = StringIO()
    text.write(HEADER.format(version=timm.__version__))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "tag", "parameters", "pixels", "licence"))
    for name in published():
        config = timm.models.get_pretrained_cfg(name)
        architecture, _, tag = name.partition(".")
        count = parameters(architecture, config.num_classes)
        licence = licence_of(name) if tag else ""
        writer.writerow((architecture, tag, count, config.input_size[-1], licence))
    write_text(FILE, text.getvalue())
    print(f"{FILE}: {len(text.getvalue()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
