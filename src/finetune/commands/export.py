"""``finetune export``: a checkpoint as a file that other programs run, with proof that it fits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.commands.outputs import add_output, checked_output
from finetune.commands.parsing import Parser
from finetune.distribution import pip_command
from finetune.exporting.targets import SUFFIXES

if TYPE_CHECKING:
    from finetune.exporting.export import Exported


def main(arguments: list[str]) -> int:
    """Write, compare answers, and say what goes in and what comes out."""
    options = _parser().parse_args(arguments)
    suffix = SUFFIXES.get(options.format)
    output = checked_output(
        options.output,
        endings=() if suffix is None else (suffix,),
        overwrite=options.overwrite,
        inputs=[options.checkpoint],
    )

    from finetune.combining.ensemble_file import checkpoint_file
    from finetune.commands.trainer import quiet_libraries
    from finetune.exporting.export import export
    from finetune.exporting.onnx_file import require_packages
    from finetune.prediction.predictor import fits_of, load_model

    if options.format == "onnx":
        require_packages()
    quiet_libraries()
    model = load_model(checkpoint_file(options.checkpoint))
    output.keep_off(fits=fits_of(model))
    with output.writing() as beside:
        exported = export(model, beside, format=options.format)
    if options.format in ("onnx", "torch"):
        for line in describe_graph(exported):
            print(line)
    print(describe_parity(exported))
    print(f"exported to {output.path}, {_size(output.path)}")
    return 0


def describe_graph(exported: Exported) -> list[str]:
    """What goes in and what comes out."""
    lines = []
    for name, preprocessing in exported.inputs.items():
        side = preprocessing.image_size
        lines.append(f"input   {name} (batch, {preprocessing.in_chans}, {side}, {side}) in [0, 1]")
    return [*lines, f"output  probabilities (batch, {len(exported.class_names)})"]


def describe_parity(exported: Exported) -> str:
    """How far the answers are from the checkpoint's."""
    if exported.greatest_difference is None:
        return (
            "answers not compared with the checkpoint's: onnxruntime is not installed; "
            f"run {pip_command('export')}"
        )
    return (
        "greatest difference to the checkpoint's probabilities on random images: "
        f"{exported.greatest_difference:.2g}"
    )


def _size(path: Path) -> str:
    files = path.iterdir() if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="finetune export",
        description="Write a classifier, average or ensemble for programs without finetune. "
        "Images in [0, 1] go in, probabilities come out; class names, preprocessing and "
        "calibration go along as JSON.",
    )
    parser.add_argument("checkpoint", help="a checkpoint, an ensemble or a run folder")
    parser.add_argument(
        "--format",
        choices=["onnx", "torch", "safetensors", "timm"],
        default="onnx",
        help="onnx and torch write one file, .onnx or .pt2; the others a folder of weights "
        "and JSON",
    )
    add_output(parser, "the file or folder", metavar="PATH")
    return parser
