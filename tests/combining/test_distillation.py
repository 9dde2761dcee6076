import pytest
import torch

from finetune.combining.distillation import distillation_loss
from finetune.errors import UsageError

TEACHER = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
LABELS = torch.tensor([0, 2])


def test_a_student_that_repeats_its_teacher_has_no_loss_and_no_gradient() -> None:
    logits = TEACHER.log().requires_grad_()
    loss = distillation_loss(logits, TEACHER, LABELS, temperature=3.0, teacher_share=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_the_minimum_of_the_teachers_term_is_the_teacher() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = distillation_loss(logits, TEACHER, LABELS, temperature=1.0, teacher_share=1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.detach().softmax(-1), TEACHER, atol=1e-4, rtol=0)


def test_without_a_teacher_it_is_the_cross_entropy() -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(logits, LABELS)
    torch.testing.assert_close(
        distillation_loss(logits, TEACHER, LABELS, teacher_share=0), expected
    )


def test_the_gradient_keeps_its_size_at_high_temperatures() -> None:
    # Hinton et al., section 2.1: T^2 dKL/dz -> (z - v) / C for centred logits.
    student = torch.tensor([[0.3, -0.1, -0.2]], requires_grad=True)
    teacher = torch.tensor([[-0.4, 0.5, -0.1]])
    loss = distillation_loss(
        student, teacher.softmax(-1), torch.tensor([0]), temperature=1000.0, teacher_share=1.0
    )
    loss.backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, atol=1e-3, rtol=0)


def test_certain_teachers_give_a_finite_loss() -> None:
    loss = distillation_loss(torch.randn(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert bool(loss.isfinite())


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"teacher_share": 1.5}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="temperature above 0"):
        distillation_loss(torch.zeros(2, 3), TEACHER, LABELS, **settings)
