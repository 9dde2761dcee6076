"""The baselines learn: scikit-learn's handwritten digits, a fifth of them held out."""

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from finetune.networks import baselines as _register  # noqa: F401


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``(N, 1, 8, 8)`` about zero and labels, to train on and held out."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    labels = torch.from_numpy(data.target)
    train, test = train_test_split(
        range(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return images[train], labels[train], images[test], labels[test]


def held_out_accuracy(
    network: nn.Module, digits: tuple[Tensor, Tensor, Tensor, Tensor], epochs: int
) -> float:
    images, labels, test_images, test_labels = digits
    steps = epochs * (len(images) // 64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    order = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=order).split(64):
            if len(chosen) < 64:
                continue
            loss = nn.functional.cross_entropy(network(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        return (network(test_images).argmax(1) == test_labels).double().mean().item()


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("baseline_mlp", {}, 0.94),
        ("baseline_cnn", {}, 0.97),
        ("baseline_cnn", {"pool": "sum"}, 0.97),
        ("baseline_cnn", {"batch_norm": False, "pool": "sum"}, 0.9),
        ("baseline_cnn", {"downsample": "stride", "hidden_size": 32}, 0.97),
        ("baseline_resnet", {}, 0.97),
        ("baseline_inception", {}, 0.97),
        ("baseline_inception", {"five_by_five": "single"}, 0.95),
    ],
    ids=str,
)
def test_a_baseline_reads_digits(
    name: str, options: dict, least: float, digits: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, size="tiny", num_classes=10, in_chans=1, **options)
    assert held_out_accuracy(network, digits, epochs=18) >= least
