"""What makes the logits, over families: with a norm in their final layer, with two, with none."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from finetune.errors import NetworkError
from finetune.networks.factory import create_network
from finetune.networks.final_layer import output_tensors
from finetune.networks.splitting import split_at_parameters
from finetune.tasks.multiclass import MULTICLASS
from finetune.training.temperature import best_temperature, rescaled

CLASSES = 5
# Name, side in pixels, whether the network can be cut at its final layer.
FAMILIES = [
    ("baseline_cnn", 32, True),
    ("baseline_mlp", 32, True),
    ("test_resnet", 32, True),
    ("test_efficientnet", 32, True),
    ("test_convnext", 32, True),
    ("test_vit", 32, True),
    ("mobilenetv3_small_050", 32, True),
    ("dla46_c", 32, True),  # the final layer is a convolution
    ("iformer_t", 32, True),  # a norm stands inside of the final layer
    ("repvit_m0_9", 32, True),  # and two answers are averaged
    ("efficientvit_m0", 32, False),  # a norm stands before what calls itself the final layer
    ("shvit_s1", 32, False),
    ("levit_128s", 224, False),
    ("efficientformerv2_s0", 224, False),
    ("deit_tiny_distilled_patch16_224", 32, False),
]
names = pytest.mark.parametrize(("name", "size", "cut"), FAMILIES, ids=[f[0] for f in FAMILIES])


def network_of(name: str, size: int, num_classes: int = CLASSES) -> nn.Module:
    """With statistics, scales and shifts of its norms as a fit leaves them."""
    torch.manual_seed(0)
    network = create_network(name, num_classes, image_size=size).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    for tensor in map(network.get_parameter, output_tensors(network)):
        nn.init.normal_(tensor, 0, 0.5)
    return network


@names
def test_divided_by_t_it_divides_the_logits(name: str, size: int, cut: bool) -> None:
    network = network_of(name, size)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2])
    with torch.inference_mode():
        logits = network(images)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    after, expected = rescaled(MULTICLASS, state, logits, labels, output_tensors(network))
    temperature = best_temperature(logits, labels)
    assert abs(temperature - 1) > 0.05, "nothing to divide by"
    torch.testing.assert_close(expected, logits / temperature)
    after = {key.removeprefix("network."): value for key, value in after.items()}
    with torch.inference_mode():
        answer = functional_call(network, after, (images,))
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


@names
def test_each_of_its_rows_is_a_class(name: str, size: int, cut: bool) -> None:
    network = network_of(name, size)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    order = [3, 0, 4, 1, 2]
    rows = {key: network.get_parameter(key)[order] for key in output_tensors(network)}
    with torch.inference_mode():
        answer = functional_call(network, rows, (images,))
        torch.testing.assert_close(answer, network(images)[:, order])


@names
def test_a_network_cut_at_its_final_layer_answers_alike(name: str, size: int, cut: bool) -> None:
    network = network_of(name, size)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    if not cut:
        with pytest.raises(NetworkError, match="final layer"):
            split_at_parameters(network, "head", ())
        return
    bottom, top = split_at_parameters(network, "head", ())
    with torch.inference_mode():
        assert torch.equal(top(bottom(images)), network(images))


def test_a_hidden_layer_as_wide_as_the_classes_is_not_mistaken() -> None:
    class Deep(nn.Module):
        num_classes = 4

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 4))

        def get_classifier(self) -> nn.Module:
            return self.head

    assert output_tensors(Deep()) == ()
    state = {"network.head.0.weight": torch.ones(4, 8)}
    logits, labels = torch.randn(9, 4), torch.arange(9) % 4
    unchanged, answers = rescaled(MULTICLASS, state, logits, labels, ())
    assert unchanged == state
    assert answers is logits
