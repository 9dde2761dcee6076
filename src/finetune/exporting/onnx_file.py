"""ONNX: one file for runtimes that know nothing of torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finetune.combining.ensemble import Ensemble
from finetune.errors import ExportError
from finetune.exporting.description import as_json, describe_export, input_names, output_name
from finetune.exporting.parity import Reloaded
from finetune.exporting.tracing import BATCH, first_line, trace
from finetune.extras import need

if TYPE_CHECKING:
    import onnxruntime

METADATA_KEY = "finetune"
# A file of protocol buffers ends here; the graph itself needs a little of it.
MOST_BYTES = 2**31 - 2**24


def write_onnx(ensemble: Ensemble, beside: Path) -> Reloaded | None:
    """Write a ``.onnx`` file with the description as its metadata ``finetune``.

    Returns:
        What answers from the file; None without onnxruntime.

    Raises:
        ExportError: no package for it, a network that cannot be translated, or one too large.
    """
    need("export", "the format onnx")
    _check_size(ensemble)
    names = input_names(ensemble)
    program = trace(ensemble)
    try:
        translated = torch.onnx.export(
            program,
            input_names=names,
            output_names=[output_name(ensemble)],
            # Free already; this names the one dimension of all, instead of the tracer's number.
            dynamic_shapes={"views": ({0: BATCH}, *[None] * (len(names) - 1))},
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # each operator has a translation of its own
        raise ExportError(
            "Expected a network that torch.onnx can translate, found "
            f"{type(error).__name__}: {first_line(error)}; use the format torch or safetensors."
        ) from error
    assert translated is not None
    for node in translated.model.graph.all_nodes():
        node.metadata_props.clear()  # traces into the files of this machine
    translated.model.metadata_props[METADATA_KEY] = as_json(describe_export(ensemble))
    translated.save(beside, external_data=False)
    return _runtime(beside, names, output_name(ensemble))


def _check_size(ensemble: Ensemble) -> None:
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in ensemble.state_dict().values()}
    if sum(sizes.values()) > MOST_BYTES:
        raise ExportError(
            f"Expected weights of at most 2 GiB for one ONNX file, found "
            f"{sum(sizes.values()) / 2**30:.1f} GiB; use the format torch or safetensors."
        )


def _runtime(path: Path, names: tuple[str, ...], output: str) -> Reloaded | None:
    if find_spec("onnxruntime") is None:
        return None
    return answering(session_of(path), names, output)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    """The file, ready to run on the processor, on as many threads as torch takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; they are raised too
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answering(
    session: onnxruntime.InferenceSession, names: tuple[str, ...], output: str
) -> Reloaded:
    """From float views, one an input of these names, to the output of that name."""

    def answer(views: tuple[torch.Tensor, ...]) -> torch.Tensor:
        inputs = {name: view.numpy() for name, view in zip(names, views, strict=True)}
        return torch.from_numpy(session.run([output], inputs)[0])

    return answer
