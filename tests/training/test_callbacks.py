import pytest
import timm
import torch
from lightning import LightningModule, Trainer

from finetune.networks.factory import create_network
from finetune.training.callbacks import L2SP, EpochSeed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*module.s. in eval mode"),
]


class Module(LightningModule):
    def __init__(self, loss_weight=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.network = create_network("test_resnet", 3)
        self.network.eval()
        self.loss_weight = loss_weight
        self.drawn = []

    def training_step(self, batch, batch_idx):
        self.drawn.append(float(torch.rand(())))
        return self.loss_weight * self.network(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.05)


def fit(module, *callbacks, epochs=3):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=epochs,
        callbacks=list(callbacks),
    )
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=4))
    return module


def distance(module):
    start = dict(Module().network.named_parameters())
    final = {id(value) for value in module.network.get_classifier().parameters()}
    return sum(
        float((value - start[name]).detach().square().sum())
        for name, value in module.network.named_parameters()
        if id(value) not in final
    )


def test_no_pull_at_the_start():
    module = fit(Module(loss_weight=0.0), L2SP(alpha=10.0, beta=0.0))
    assert distance(module) == 0


def test_a_strong_pull_keeps_the_backbone_and_decays_the_final_layer():
    free = fit(Module())
    held = fit(Module(), L2SP(alpha=15.0, beta=5.0))
    assert distance(held) < 0.2 * distance(free)
    start = Module().network.get_classifier().weight.norm()
    assert held.network.get_classifier().weight.norm() < 0.5 * start


def test_both_final_layers_of_a_distilled_network_have_no_start():
    module = Module()
    module.network = timm.create_model("deit_tiny_distilled_patch16_224", depth=1, num_classes=3)
    callback = L2SP(alpha=0.3)
    callback.on_fit_start(None, module)
    pulled = {name for name, _ in module.network.named_parameters()} - callback.start.keys()
    assert pulled == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_one_step_is_the_gradient_of_the_penalty():
    callback = L2SP(alpha=0.3, beta=0.7)
    module = Module()
    callback.on_fit_start(None, module)
    with torch.no_grad():
        for value in module.network.parameters():
            value.add_(0.1)
    (0 * module.network(torch.rand(2, 3, 32, 32)).sum()).backward()
    before = {name: value.grad.clone() for name, value in module.network.named_parameters()}
    callback.on_before_optimizer_step(None, module, None)
    network = module.network
    torch.testing.assert_close(
        network.conv1[0].weight.grad - before["conv1.0.weight"],
        torch.full_like(network.conv1[0].weight, 0.3 * 0.1),
        atol=1e-5,
        rtol=1e-3,
    )
    torch.testing.assert_close(
        network.fc.weight.grad - before["fc.weight"],
        0.7 * network.fc.weight.detach(),
        atol=1e-5,
        rtol=1e-3,
    )


def test_an_epochs_draws_depend_on_seed_and_epoch_alone():
    torch.manual_seed(5)
    one = fit(Module(), EpochSeed(3)).drawn
    torch.manual_seed(6)
    two = fit(Module(), EpochSeed(3)).drawn
    other = fit(Module(), EpochSeed(4)).drawn
    assert one == two
    assert len(set(one)) == len(one)
    assert not set(one) & set(other)
