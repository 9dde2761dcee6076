"""One page to label images on, offline: keys 1 to 9, undo, and a manifest to save.

Nothing is loaded and nothing is sent: images lie in the page, its policy allows its own style and
script alone, and what was chosen leaves it as a file that the user saves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from finetune.prediction.suggestions import Suggestion
from finetune.reporting.page import TEMPLATES, content_policy
from finetune.reporting.thumbnails import data_uri, read_whole
from finetune.tables.writing import encodable

SIDE = 512  # pixels of the longer side: all of an image is shown
KEYS = 9


def render_label_page(images: Sequence[Suggestion], class_names: Sequence[str]) -> str:
    """The whole page as text.

    Up to nine classes have each a key of its own; of more each image offers its likeliest nine, and
    the others by name.

    Args:
        images: in the order in which they are shown.
        class_names: all that are known.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    css, script = (
        (TEMPLATES / f"label.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    few = len(class_names) <= KEYS
    shown = [_shown(image, class_names if few else image.classes) for image in images]
    return environment.get_template("label.html.j2").render(
        policy=content_policy(css, script),
        css=Markup(css),
        script=Markup(script),
        images=json.dumps(shown),
        class_names=class_names,
        count=len(shown),
    )


def _shown(image: Suggestion, choices: Sequence[str]) -> dict[str, object]:
    pixels = read_whole(image.path, side=SIDE)
    return {
        "path": encodable(os.path.abspath(image.path)),
        "image": None if pixels is None else data_uri(pixels, quality=75),
        "choices": list(choices),
        "guess": image.classes[0],
        "probability": image.probability,
        "unknown": image.unknown,
    }
