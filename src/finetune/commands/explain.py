"""``finetune explain``: show where in an image the answer comes from (Grad-CAM)."""

from __future__ import annotations

from finetune.commands.held_out_images import add_accelerator
from finetune.commands.outputs import add_output, checked_output, default_output
from finetune.commands.parsing import Parser

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: list[str]) -> int:
    """Write one image: a row each, the photograph and the heat for each class."""
    options = _parser().parse_args(arguments)
    output = checked_output(
        default_output("explained.png", options),
        endings=IMAGES,
        overwrite=options.overwrite,
        inputs=[options.checkpoint, *options.images],
        images=options.images,
    )

    from finetune.prediction import find_images
    from finetune.prediction.predictor import fits_of, load_model
    from finetune.reporting.explain import explain
    from finetune.reporting.overlays import panels
    from finetune.runtime import Runtime

    runtime = Runtime.chosen(options.accelerator)
    files = find_images(options.images)
    model = load_model(options.checkpoint, runtime)
    output.keep_off(inputs=files, fits=fits_of(model))
    rows = []
    for file in files:
        explanations = explain(model, file, [None, *options.class_names])
        predicted = explanations[0]
        rows.append(
            [predicted, *(e for e in explanations[1:] if e.class_name != predicted.class_name)]
        )
        answers = ", ".join(f"{e.class_name} {e.probability:.3f}" for e in rows[-1])
        print(f"{file}  {answers}", flush=True)
    with output.writing() as beside:
        panels(rows).save(beside)
    print(f"explained in {output.path}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="finetune explain", description=__doc__)
    parser.add_argument("checkpoint", help="a .ckpt file: classifier, average or ensemble")
    parser.add_argument("images", nargs="+", help="files, folders or glob patterns")
    add_output(parser, "the image", metavar="FILE.png", default="explained.png")
    parser.add_argument(
        "--class",
        dest="class_names",
        action="append",
        default=[],
        metavar="NAME",
        help="a class to explain beside the predicted one; may be repeated",
    )
    add_accelerator(parser)
    return parser
