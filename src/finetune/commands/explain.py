"""``finetune explain``: show where in a picture the answer comes from (Grad-CAM)."""

from __future__ import annotations

from pathlib import Path

from finetune.commands.parsing import Parser
from finetune.errors import UsageError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: list[str]) -> int:
    """Write one picture: a row each, the photograph and the heat for each class."""
    options = _parser().parse_args(arguments)
    output = Path(options.output)
    if output.suffix.lower() not in PICTURES:
        raise UsageError(
            f"Expected --output to end in {', '.join(PICTURES)}, found {output.name!r}; rename it."
        )
    if not output.parent.is_dir():
        raise UsageError(
            f"Expected a folder to write {output.name} into, found no {output.parent}."
        )

    from finetune.commands.loading import load_answerer
    from finetune.prediction import find_pictures
    from finetune.reporting.explain import explain
    from finetune.reporting.overlays import panels

    files = find_pictures(options.pictures)
    answerer = load_answerer(options.checkpoint)
    rows = []
    for file in files:
        explanations = explain(answerer, file, [None, *options.class_names])
        predicted = explanations[0]
        rows.append(
            [predicted, *(e for e in explanations[1:] if e.class_name != predicted.class_name)]
        )
        answers = ", ".join(f"{e.class_name} {e.probability:.3f}" for e in rows[-1])
        print(f"{file}  {answers}", flush=True)
    beside = output.with_name(f".part-{output.name}")
    panels(rows).save(beside)
    beside.replace(output)
    print(f"explained in {output}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="finetune explain", description=__doc__)
    parser.add_argument("checkpoint", help="a .ckpt file: classifier, average or ensemble")
    parser.add_argument("pictures", nargs="+", help="files, folders or glob patterns")
    parser.add_argument("--output", default="explained.png", help="the picture to write")
    parser.add_argument(
        "--class",
        dest="class_names",
        action="append",
        default=[],
        metavar="NAME",
        help="a class to explain beside the predicted one; may be repeated",
    )
    return parser
