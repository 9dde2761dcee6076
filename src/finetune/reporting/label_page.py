"""One page to label images on, offline: keys 1 to 9, undo, and a manifest to save.

Nothing is loaded and nothing is sent: images lie in the page, its policy allows its own style and
script alone, and what was chosen leaves it as a file that the user saves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from finetune.prediction.suggestions import Suggestion
from finetune.reporting.page import TEMPLATES, content_policy
from finetune.reporting.thumbnails import data_uri, read_whole
from finetune.reporting.triage import LabelSuspect
from finetune.tables.writing import encodable

SIDE = 512  # pixels of the longer side: all of an image is shown
KEYS = 9


class ToLabel(NamedTuple):
    """An image as the page shows it.

    Attributes:
        path: as it was given; the manifest has it absolute.
        likeliest: classes, the likeliest first; the keys where there are more than nine.
        said: what is known of it.
    """

    path: str
    likeliest: tuple[str, ...]
    said: str


def to_label(image: Suggestion) -> ToLabel:
    """What the page says of a suggestion."""
    guess = f"the classifier says {image.classes[0]} ({image.probability:.0%})"
    unknown = "of no class that was learnt, says the rule for unknown images"
    return ToLabel(image.path, image.classes, unknown if image.unknown else guess)


def to_relabel(suspect: LabelSuspect, probabilities: Mapping[str, float], path: str) -> ToLabel:
    """What the page says of an image whose label may be wrong.

    Args:
        suspect: by triage.
        probabilities: of each class.
        path: where the image lies.
    """
    ranked = sorted(probabilities, key=lambda name: (name != suspect.label, -probabilities[name]))
    if suspect.suggested:
        sure = probabilities[suspect.suggested]
        said = f"labelled {suspect.label}; the classifier says {suspect.suggested} ({sure:.0%})"
    else:
        said = f"labelled {suspect.label}; unlike all other images"
    return ToLabel(path, tuple(ranked[:KEYS]), said)


def render_label_page(
    images: Sequence[ToLabel],
    class_names: Sequence[str],
    *,
    notes: Sequence[str] = (),
    relabels: bool = False,
) -> str:
    """The whole page as text.

    Up to nine classes have each a key of its own; of more each image offers its likeliest nine, and
    the others by name.

    Args:
        images: in the order in which they are shown, at least one.
        class_names: all that are known.
        notes: sentences above the images.
        relabels: the images have labels, which may be wrong.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    css, script = (
        (TEMPLATES / f"label.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    few = len(class_names) <= KEYS
    shown = [_shown(image, class_names if few else image.likeliest) for image in images]
    doing = "Look at the labels of" if relabels else "Label"
    return environment.get_template("label.html.j2").render(
        policy=content_policy(css, script),
        css=Markup(css),
        script=Markup(script),
        images=json.dumps(shown),
        class_names=class_names,
        count=len(shown),
        title=f"{doing} {len(shown)} image{'s' * (len(shown) != 1)}",
        notes=notes,
    )


def _shown(image: ToLabel, choices: Sequence[str]) -> dict[str, object]:
    pixels = read_whole(image.path, side=SIDE)
    return {
        "path": encodable(os.path.abspath(image.path)),
        "image": None if pixels is None else data_uri(pixels, quality=75),
        "choices": list(choices),
        "said": image.said,
    }
