import pytest
import torch

from finetune.errors import UsageError
from finetune.tasks.distillation import distillation_loss
from finetune.training.classifier import ImageClassifier

TEACHER = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
LABELS = torch.tensor([0, 2])


def test_a_student_that_repeats_its_teacher_has_no_loss_and_no_gradient() -> None:
    logits = TEACHER.log().requires_grad_()
    loss = distillation_loss(logits, TEACHER, temperature=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_the_minimum_is_the_teacher() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = distillation_loss(logits, TEACHER, temperature=1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.detach().softmax(-1), TEACHER, atol=1e-4, rtol=0)


def test_the_gradient_keeps_its_size_at_high_temperatures() -> None:
    # Hinton et al., section 2.1: T^2 dKL/dz -> (z - v) / C for centred logits.
    student = torch.tensor([[0.3, -0.1, -0.2]], requires_grad=True)
    teacher = torch.tensor([[-0.4, 0.5, -0.1]])
    distillation_loss(student, teacher.softmax(-1), temperature=1000.0).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, atol=1e-3, rtol=0)


def test_certain_teachers_give_a_finite_loss() -> None:
    loss = distillation_loss(torch.randn(1, 2), torch.tensor([[1.0, 0.0]]))
    assert bool(loss.isfinite())


def student(**settings: float) -> ImageClassifier:
    classifier = ImageClassifier(
        ("a", "b", "c"), "baseline_mlp", pretrained=False, image_size=8, **settings
    )
    classifier.log = lambda *_, **__: None  # type: ignore[method-assign]
    return classifier


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_step_weighs_teacher_and_labels_by_the_share(share: float) -> None:
    classifier = student(teacher_share=share, teacher_temperature=3.0, label_smoothing=0.2)
    images = torch.rand(2, 3, 8, 8)
    logits = classifier.eval()(images)
    hard = torch.nn.functional.cross_entropy(logits, LABELS, label_smoothing=0.2)
    soft = distillation_loss(logits, TEACHER, temperature=3.0)
    torch.testing.assert_close(
        classifier.training_step((images, LABELS, TEACHER), 0), share * soft + (1 - share) * hard
    )
    torch.testing.assert_close(classifier.training_step((images, LABELS), 0), hard)


@pytest.mark.parametrize("settings", [{"teacher_temperature": 0.0}, {"teacher_share": 1.5}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        student(**settings)


def test_images_are_not_mixed_beside_a_teacher() -> None:
    with pytest.raises(UsageError, match=r"without --model\.mixup_alpha"):
        student(teacher="ensemble.ckpt", mixup_alpha=0.2)  # type: ignore[arg-type]
