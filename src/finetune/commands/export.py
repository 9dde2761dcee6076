"""``finetune export``: a checkpoint as a file that other programs run, with proof that it fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from finetune.commands.guest import Where
from finetune.commands.outputs import checked_output
from finetune.commands.verb import Typed
from finetune.exporting.targets import SUFFIXES, Format
from finetune.extras import need, remedy

if TYPE_CHECKING:
    from finetune.exporting.export import Exported


def export(
    checkpoint: Where,
    *,
    output: Annotated[Where, Typed(metavar="PATH")],
    format: Format = "onnx",
    overwrite: bool = False,
) -> None:
    """Write a classifier, average or ensemble for programs without finetune.

    Images in [0, 1] go in, probabilities come out; class names, preprocessing and calibration go
    along as JSON.

    Args:
        checkpoint: a checkpoint, an ensemble or a run folder.
        output: the file or folder to write.
        format: onnx and torch write one file, .onnx or .pt2; the others a folder of weights and
            JSON.
        overwrite: replace what is there.
    """
    suffix = SUFFIXES.get(format)
    written = checked_output(
        output,
        endings=() if suffix is None else (suffix,),
        overwrite=overwrite,
        inputs=[checkpoint],
    )

    from finetune.combining.ensemble_file import checkpoint_file
    from finetune.commands.trainer import quiet_libraries
    from finetune.exporting.export import export as write_export
    from finetune.prediction.predictor import fits_of, load_model

    if format == "onnx":
        need("export", "--format onnx")
    quiet_libraries()
    model = load_model(checkpoint_file(Path(checkpoint)))
    written.keep_off(fits=fits_of(model))
    with written.writing() as beside:
        exported = write_export(model, beside, format=format)
    if format in ("onnx", "torch"):
        print(*describe_graph(exported), sep="\n")
    print(describe_parity(exported))
    print(f"exported to {written.path}, {_size(written.path)}")


def describe_graph(exported: Exported) -> list[str]:
    """What goes in and what comes out."""
    lines = []
    for name, preprocessing in exported.inputs.items():
        side = preprocessing.image_size
        lines.append(f"input   {name} (batch, {preprocessing.in_chans}, {side}, {side}) in [0, 1]")
    return [*lines, f"output  {exported.output} (batch, {len(exported.class_names)})"]


def describe_parity(exported: Exported) -> str:
    """How far the answers are from the checkpoint's."""
    if exported.greatest_difference is None:
        return (
            "answers not compared with the checkpoint's: onnxruntime is not installed; "
            f"{remedy('export')}"
        )
    return (
        f"greatest difference to the checkpoint's {exported.output} on random images: "
        f"{exported.greatest_difference:.2g}"
    )


def _size(path: Path) -> str:
    files = path.iterdir() if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
