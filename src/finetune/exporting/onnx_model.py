"""An ONNX file that ``finetune export`` wrote, as what answers: onnxruntime, and no network.

Probabilities come out of the graph; refusals and prediction sets follow from its description.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.combining.calibrated_answer import Answer, Calibration, decide
from finetune.errors import ExportError
from finetune.exporting.description import VERSION, ensemble_entry
from finetune.exporting.onnx_file import METADATA_KEY, answering, session_of
from finetune.exporting.parity import Reloaded
from finetune.extras import remedy
from finetune.spec.checkpoint_entry import CALIBRATION, CLASS_NAMES
from finetune.spec.preprocessing import Preprocessing
from finetune.spec.schema import (
    UnexpectedValue,
    one_of,
    optional,
    record,
    several,
    text,
    whole,
)
from finetune.spec.settings import OPEN_SHARE, SIDE
from finetune.tasks.known import TASKS
from finetune.tasks.task import Task

_INPUT = record(
    {
        "name": text(100),
        "channels": whole(1, 1024),
        "resize_short_side": SIDE,
        "resize_long_side": one_of("truncated", "rounded"),
        "interpolation": one_of("nearest", "bilinear", "bicubic"),
        "centre_crop": SIDE,
    }
)
_DESCRIPTION = record(
    {
        "version": whole(VERSION, VERSION),
        "task": one_of(*TASKS),
        "class_names": CLASS_NAMES,
        "inputs": several(_INPUT, 1, 1000),
        "output": one_of("probabilities", "numbers"),
    },
    calibration=optional(CALIBRATION),
    thresholds=optional(several(OPEN_SHARE)),
)


@dataclass(frozen=True)
class OnnxModel:
    """What an export answers, by its own account.

    Attributes:
        task: what is predicted.
        class_names: of the output's columns.
        preprocessings: how an image becomes each input; normalisation is inside of the graph.
        calibration: refusals, prediction sets and thresholds; None where there are none.
        thresholds: of several labels an image, from which probability on each is named.
    """

    task: Task
    class_names: tuple[str, ...]
    preprocessings: tuple[Preprocessing, ...]
    calibration: Calibration | None
    thresholds: tuple[float, ...] | None
    _run: Reloaded = field(repr=False)

    @classmethod
    def from_file(cls, path: str | Path) -> OnnxModel:
        """Open an ``.onnx`` file.

        Raises:
            ExportError: no onnxruntime, no such file, or one of other software.
        """
        path = Path(path)
        if find_spec("onnxruntime") is None:
            raise ExportError(
                f"Expected onnxruntime to answer from {path.name}, found none; {remedy('export')}."
            )
        if not path.is_file():
            raise ExportError(f"Expected an ONNX file, found none at {path}; check the path.")
        try:
            session = session_of(path)
        except Exception as error:  # of onnxruntime's own kinds, which share no base
            raise _foreign(path, "no ONNX model that onnxruntime opens") from error
        kept = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if kept is None:
            raise _foreign(path, "no description of classes and preprocessing in it")
        try:
            about = ensemble_entry(json.loads(kept))
            _DESCRIPTION(about)
        except (LookupError, TypeError, ValueError, RecursionError, UnexpectedValue) as error:
            raise _foreign(path, f"another description ({error})") from error
        inputs = {value.name for value in session.get_inputs()}
        outputs = {value.name for value in session.get_outputs()}
        names = tuple(each["name"] for each in about["inputs"])
        if inputs != set(names) or about["output"] not in outputs:
            raise _foreign(path, "a graph with other inputs or outputs than it describes")
        return cls._described(about, answering(session, names, about["output"]))

    @classmethod
    def _described(cls, about: dict[str, Any], run: Reloaded) -> OnnxModel:
        calibration, thresholds = about.get("calibration"), about.get("thresholds")
        return cls(
            TASKS[about["task"]],
            tuple(about["class_names"]),
            tuple(map(_preprocessing, about["inputs"])),
            None if calibration is None else Calibration.from_dict({"fit": None, **calibration}),
            None if thresholds is None else tuple(thresholds),
            run,
        )

    def answer(self, views: Sequence[Tensor]) -> Answer:
        """What the file says of B images.

        Args:
            views: ``uint8 (B, C_i, S_i, S_i)`` for each of :attr:`preprocessings`.
        """
        found = self._run(tuple(view.float() / 255 for view in views))
        outputs = self.task.of_probabilities(found)
        pooled = outputs if self.calibration is None else self.calibration.uncalibrated(outputs)
        return decide(self.task, pooled, pooled[None], self.calibration, thresholds=self.thresholds)


def _preprocessing(view: dict[str, Any]) -> Preprocessing:
    side, short, channels = view["centre_crop"], view["resize_short_side"], view["channels"]
    return Preprocessing(
        image_size=side,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        crop_fraction=side / (short + 0.5),  # whose inverse is cut to whole pixels
        interpolation=view["interpolation"],
        long_side=view["resize_long_side"],
    )


def _foreign(path: Path, found: str) -> ExportError:
    return ExportError(
        f"Expected a file that `finetune export --format onnx` wrote at {path}, found {found}; "
        "export the checkpoint again."
    )
