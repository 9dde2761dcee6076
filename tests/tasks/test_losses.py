import pytest
import torch

from finetune.errors import UsageError
from finetune.tasks.losses import ClassificationLoss, batch_mixing, class_weights


def batch(seed=0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, classes, generator=generator)
    return logits, torch.randint(classes, (9,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_vanishing_gamma_is_cross_entropy(smoothing, weighted):
    logits, labels = batch()
    loss = ClassificationLoss(label_smoothing=smoothing, focal_gamma=1e-9)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else None
    loss.weight = weight
    reference = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, labels), reference(logits, labels))
    soft = torch.nn.functional.one_hot(labels, 4) * 0.7 + 0.3 / 4
    torch.testing.assert_close(loss(logits, soft), reference(logits, soft))
    plain = ClassificationLoss(label_smoothing=smoothing)
    plain.weight = weight
    torch.testing.assert_close(plain(logits, labels), reference(logits, labels))


def test_focal_loss_is_that_of_the_paper():
    logits, labels = batch()
    p = logits.softmax(1)[torch.arange(9), labels]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(ClassificationLoss(focal_gamma=2.0)(logits, labels), expected)


def test_soft_and_hard_labels_agree():
    logits, labels = batch()
    loss = ClassificationLoss(focal_gamma=1.5)
    soft = torch.nn.functional.one_hot(labels, 4).float()
    torch.testing.assert_close(loss(logits, soft), loss(logits, labels))


def test_the_weights_are_no_part_of_a_checkpoint():
    loss = ClassificationLoss()
    loss.weight = torch.ones(3)
    assert not loss.state_dict()


@pytest.mark.parametrize("kind", ["balanced", "effective"])
def test_class_weights_have_mean_one_over_images_and_favour_the_rare(kind):
    counts = [100, 10, 1, 0]
    weights = class_weights(kind, counts)
    mean = (weights * torch.tensor(counts)).sum() / sum(counts)
    assert float(mean) == pytest.approx(1)
    assert bool((weights[:3].diff() > 0).all())


def test_balanced_weights_are_scikit_learns_and_effective_ones_gentler():
    balanced, effective = (
        class_weights("balanced", [90, 10]),
        class_weights("effective", [5000, 10]),
    )
    torch.testing.assert_close(balanced, torch.tensor([100 / 180, 100 / 20]))
    full = class_weights("balanced", [5000, 10])
    assert effective[1] / effective[0] < full[1] / full[0]
    assert class_weights("none", [1, 2]) is None


@pytest.mark.parametrize("size", [4, 5])
def test_mixing_gives_convex_combinations_also_of_odd_batches(size):
    torch.manual_seed(0)
    images = torch.stack([torch.full((3, 8, 8), float(index)) for index in range(size)])
    labels = torch.arange(size) % 3
    mixed, soft = batch_mixing(3, mixup_alpha=0.4)(images, labels)
    assert soft.shape == (size, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(size))
    share = mixed.mean(dim=(1, 2, 3))
    rolled = images.roll(1, 0).mean(dim=(1, 2, 3))
    own = images.mean(dim=(1, 2, 3))
    coefficient = (share - rolled) / (own - rolled)
    torch.testing.assert_close(coefficient, coefficient[0].expand(size))
    cut, _ = batch_mixing(3, cutmix_alpha=1.0)(images, labels)
    assert set(cut.unique().tolist()) <= set(range(size))
    assert batch_mixing(3) is None


def test_mistakes_are_told():
    with pytest.raises(UsageError, match="label_smoothing"):
        ClassificationLoss(label_smoothing=1.0)
    with pytest.raises(UsageError, match="mixup_alpha"):
        batch_mixing(3, mixup_alpha=-1)
