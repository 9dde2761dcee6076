import pytest
import torch

from finetune.errors import UsageError
from finetune.training.classifier import ImageClassifier

LABELS = torch.tensor([0, 2])


def gradients(classifier: ImageClassifier, images: torch.Tensor) -> dict[str, torch.Tensor]:
    classifier.train()
    classifier.zero_grad()
    classifier.training_step((images, LABELS), 0).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in classifier.named_parameters()
        if parameter.grad is not None
    }


def classifier_of(**settings: str) -> ImageClassifier:
    torch.manual_seed(0)
    classifier = ImageClassifier(
        ("a", "b", "c"), "test_resnet", pretrained=False, image_size=32, **settings
    )
    classifier.log = lambda *_, **__: None  # type: ignore[method-assign]
    return classifier


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_network_has_the_same_tensors_and_gradients() -> None:
    torch.compiler.reset()
    plain, compiled = classifier_of(), classifier_of(compile_backend="aot_eager")
    assert list(plain.state_dict()) == list(compiled.state_dict())
    images = torch.rand(2, 3, 32, 32)
    expected, found = gradients(plain, images), gradients(compiled, images)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-3)
    assert "compile_backend" not in compiled.hparams, "a checkpoint is not bound to a compiler"


def test_the_compiled_network_is_what_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        torch, "compile", lambda network, backend: seen.append(backend) or torch.nn.Identity()
    )
    classifier = classifier_of(compile_backend="inductor")
    images = torch.rand(2, 3, 32, 32)
    assert seen == ["inductor"]
    assert classifier.train()(images).shape == images.shape
    assert classifier.eval()(images).shape == (2, 3), "other batch sizes would compile anew"


def test_an_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"inductor.*found 'fast'"):
        classifier_of(compile_backend="fast")
