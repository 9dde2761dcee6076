"""One graph from images to calibrated probabilities, traced once for ONNX and torch.export."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from finetune.combining.ensemble import Ensemble
from finetune.errors import ExportError
from finetune.spec.preprocessing import Preprocessing

BATCH = "batch"


class ProbabilityGraph(nn.Module):
    """Normalisation, networks, pooling and calibration of an ensemble behind plain tensors."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, *views: Tensor) -> Tensor:
        """Probabilities ``(B, C)`` of images ``(B, C_i, S_i, S_i)`` in ``[0, 1]``, one a view."""
        by_preprocessing = dict(zip(self.ensemble.preprocessings, views, strict=True))
        return self.ensemble.probabilities(by_preprocessing)


def random_views(
    preprocessings: tuple[Preprocessing, ...], batch_size: int, seed: int = 0
) -> tuple[Tensor, ...]:
    """Images ``(B, C_i, S_i, S_i)`` in ``[0, 1]``, uniform noise, for each preprocessing."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.rand(batch_size, each.in_chans, each.image_size, each.image_size, generator=generator)
        for each in preprocessings
    )


def trace(ensemble: Ensemble) -> ExportedProgram:
    """The graph of an ensemble, for batches of any size.

    Raises:
        ExportError: a network does what ``torch.export`` cannot follow.
    """
    # Two images: a batch of one would be taken for a constant.
    example = random_views(ensemble.preprocessings, 2)
    dynamic = {"views": tuple({0: Dim(BATCH)} for _ in example)}
    try:
        with torch.no_grad():
            program = torch.export.export(
                ProbabilityGraph(ensemble).eval(), example, dynamic_shapes=dynamic
            )
    except Exception as error:  # the tracer meets foreign code, which fails in every way
        raise ExportError(
            "Expected a network that torch.export can follow, found "
            f"{type(error).__name__}: {first_line(error)}; use the format safetensors."
        ) from error
    # Where in whose files each step was computed is nobody's business.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def first_line(error: Exception) -> str:
    """The beginning of a message that may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else "no message"
