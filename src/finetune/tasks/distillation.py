"""One network taught by another, or by many: the loss of a student on a teacher's probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def distillation_loss(
    logits: Tensor, teacher_probabilities: Tensor, *, temperature: float = 2.0
) -> Tensor:
    """``T^2 * KL(teacher_T, student_T)``, averaged over the batch; a scalar.

    Both distributions are softened to the temperature T; T squared keeps the gradient's size when
    T changes. It is a divergence, so it is 0 when the student repeats the teacher.

    Args:
        logits: ``(B, C)``, the student's.
        teacher_probabilities: ``(B, C)``, for example an ensemble's; rows sum to 1.
        temperature: T, above 0.

    Source: Hinton et al., Distilling the knowledge in a neural network, 2015.
    """
    smallest = torch.finfo(teacher_probabilities.dtype).tiny
    teacher_logits = teacher_probabilities.detach().clamp_min(smallest).log()
    soft_teacher = (teacher_logits / temperature).log_softmax(dim=-1).to(logits.dtype)
    soft_student = (logits / temperature).log_softmax(dim=-1)
    divergence = torch.nn.functional.kl_div(
        soft_student, soft_teacher, log_target=True, reduction="batchmean"
    )
    return temperature**2 * divergence
