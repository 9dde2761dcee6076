"""One network taught by many: the loss of a student on its teachers' probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.errors import UsageError


def distillation_loss(
    logits: Tensor,
    teacher_probabilities: Tensor,
    labels: Tensor,
    *,
    temperature: float = 2.0,
    teacher_share: float = 0.5,
) -> Tensor:
    """``share * T^2 * KL(teacher_T, student_T) + (1 - share) * cross entropy``, a scalar.

    Both distributions are softened to the temperature T; T squared keeps the gradient's size when
    T changes. The teacher's term is a divergence, so it is 0 when the student repeats the teacher.

    Args:
        logits: ``(B, C)``, the student's.
        teacher_probabilities: ``(B, C)``, for example an ensemble's; rows sum to 1.
        labels: ``(B,)``, the true classes.
        temperature: T, above 0.
        teacher_share: in [0, 1]; 1 learns from the teacher alone.

    Raises:
        UsageError: a temperature or a share outside its range.

    Source: Hinton et al., Distilling the knowledge in a neural network, 2015.
    """
    if temperature <= 0 or not 0 <= teacher_share <= 1:
        raise UsageError(
            "Expected a temperature above 0 and a teacher's share in [0, 1], "
            f"found {temperature} and {teacher_share}; 2 and 0.5 are usual."
        )
    smallest = torch.finfo(teacher_probabilities.dtype).tiny
    teacher_logits = teacher_probabilities.detach().clamp_min(smallest).log()
    soft_teacher = (teacher_logits / temperature).log_softmax(dim=-1).to(logits.dtype)
    soft_student = (logits / temperature).log_softmax(dim=-1)
    divergence = torch.nn.functional.kl_div(
        soft_student, soft_teacher, log_target=True, reduction="batchmean"
    )
    truth = torch.nn.functional.cross_entropy(logits, labels)
    return teacher_share * temperature**2 * divergence + (1 - teacher_share) * truth
