from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import finetune.training.features.extract as module
from finetune.data.dataset import ImageDataset
from finetune.data.folder import LabelledImage
from finetune.data.transforms import evaluation_transform, training_transform
from finetune.errors import DataError
from finetune.networks.factory import create_network, network_spec
from finetune.spec.preprocessing import Preprocessing
from finetune.training.features.extract import StoredView, frozen_features, live_features, space_key
from finetune.training.features.store import FeatureStore

SIZE = 64


def classifier_of(name="test_resnet", seed=0):
    torch.manual_seed(seed)
    network = create_network(name, 3)
    with torch.no_grad():  # statistics away from 0 and 1, so that eval and train modes differ
        for buffer_name, buffer in network.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
    preprocessing = Preprocessing(image_size=SIZE)
    return SimpleNamespace(
        network=network,
        spec=network_spec(name),
        preprocessing=preprocessing,
        mean=torch.tensor(preprocessing.mean).view(1, -1, 1, 1),
        std=torch.tensor(preprocessing.std).view(1, -1, 1, 1),
    )


@pytest.fixture
def dataset(tmp_path):
    generator = np.random.default_rng(0)
    images = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        Image.fromarray(generator.integers(0, 255, (80, 70, 3), dtype=np.uint8)).save(path)
        images.append(LabelledImage(path, index % 3))
    return ImageDataset(images, evaluation_transform(Preprocessing(image_size=SIZE)))


@pytest.fixture
def counted(monkeypatch):
    """The number of images that went through the frozen part."""
    counts = []
    original = module._forward

    def forward(classifier, dataset, draws, *rest):
        counts.append(len(draws))
        return original(classifier, dataset, draws, *rest)

    monkeypatch.setattr(module, "_forward", forward)
    return counts


def eval_logits(classifier, dataset):
    images = torch.stack([dataset[index][0] for index in range(len(dataset))]) / 255
    with torch.no_grad():
        return classifier.network.eval()((images - classifier.mean) / classifier.std)


@pytest.mark.parametrize(
    ("name", "boundary"),
    [
        ("test_resnet", "head"),
        ("test_resnet", "layer3"),
        ("test_efficientnet", "head"),
        ("test_vit", "head"),
    ],
)
@pytest.mark.parametrize("on_disk", [True, False])
def test_cached_activations_give_the_logits_of_a_live_forward(
    name, boundary, on_disk, dataset, tmp_path
):
    classifier = classifier_of(name) if name != "test_vit" else vit_classifier()
    store = FeatureStore(tmp_path / "store") if on_disk else None
    found = frozen_features(
        classifier, dataset, boundary=boundary, store=store, batch_size=3
    ).tensor()
    from finetune.networks.freezing import split_at

    wanted = eval_logits(classifier, dataset)
    with torch.no_grad():
        logits = split_at(classifier.network.eval(), boundary).top(found)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


def vit_classifier():
    classifier = classifier_of()
    classifier.network = create_network("test_vit", 3, image_size=SIZE)
    return classifier


def test_every_image_runs_once_whatever_the_split_and_order(dataset, tmp_path, counted):
    classifier, store = classifier_of(), FeatureStore(tmp_path / "store")
    first = ImageDataset(dataset.images[:4], dataset.transform)
    frozen_features(classifier, first, store=store)
    whole = frozen_features(classifier, dataset, store=store)
    backwards = ImageDataset(dataset.images[::-1], dataset.transform)
    reverse = frozen_features(classifier, backwards, store=store)
    assert counted == [4, 3]
    torch.testing.assert_close(reverse.tensor().flip(0), whole.tensor(), atol=0, rtol=0)
    torch.testing.assert_close(whole[5], whole.tensor()[5], atol=0, rtol=0)


def test_a_copy_of_an_image_under_another_name_is_the_same_image(dataset, tmp_path, counted):
    copy = tmp_path / "copy.png"
    copy.write_bytes(dataset.images[0].path.read_bytes())
    doubled = ImageDataset([*dataset.images, LabelledImage(copy, 2)], dataset.transform)
    found = frozen_features(classifier_of(), doubled)
    assert counted == [7]
    torch.testing.assert_close(found[0], found[7], atol=0, rtol=0)


def test_the_final_layer_does_not_matter_but_everything_below_does(dataset):
    classifier = classifier_of()
    key = space_key(classifier, "head", None)
    with torch.no_grad():
        classifier.network.get_classifier().weight.add_(1)
    assert space_key(classifier, "head", None) == key
    different = {
        key,
        space_key(classifier, "layer4", None),
        space_key(classifier, "head", StoredView(0, "light")),
    }
    classifier.network.bn1.running_mean.add_(0.1)
    different.add(space_key(classifier, "head", None))
    with torch.no_grad():
        classifier.network.conv1[0].weight.mul_(1.1)
    different.add(space_key(classifier, "head", None))
    classifier.preprocessing = Preprocessing(image_size=SIZE, crop_fraction=1.0)
    different.add(space_key(classifier, "head", None))
    assert len(different) == 6


def test_changing_stages_above_the_boundary_keeps_the_key():
    classifier = classifier_of()
    key = space_key(classifier, "layer3", None)
    with torch.no_grad():
        for buffer in classifier.network.layer4.buffers():
            buffer.add_(1)
        for parameter in classifier.network.layer3.parameters():
            parameter.add_(1)
    assert space_key(classifier, "layer3", None) == key


def test_changed_images_are_seen(dataset, tmp_path, counted):
    classifier, store = classifier_of(), FeatureStore(tmp_path / "store")
    before = frozen_features(classifier, dataset, store=store).tensor()
    Image.new("RGB", (90, 90), "red").save(dataset.images[2].path)
    after = frozen_features(classifier, dataset, store=store).tensor()
    assert counted == [7, 1]
    assert not torch.equal(after[2], before[2])
    torch.testing.assert_close(after[3:], before[3:], atol=0, rtol=0)


def test_an_image_that_changes_meanwhile_is_not_cached_as_the_old_one(
    dataset, tmp_path, monkeypatch
):
    classifier, store = classifier_of(), FeatureStore(tmp_path / "store")
    path = dataset.images[2].path
    old, original = path.read_bytes(), module._forward

    def forward(*arguments):
        Image.new("RGB", (90, 90), "red").save(path)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_forward", forward)
        with pytest.raises(DataError, match=r"2\.png to stay as it is"):
            frozen_features(classifier, dataset, store=store)
    path.write_bytes(old)
    after = frozen_features(classifier, dataset, store=store).tensor()
    torch.testing.assert_close(after, frozen_features(classifier, dataset).tensor())


def test_views_are_random_but_the_same_in_every_order_and_run(dataset, tmp_path):
    classifier = classifier_of()
    random_views = ImageDataset(
        dataset.images, training_transform(Preprocessing(image_size=SIZE), "light")
    )
    some = ImageDataset(dataset.images[3:], random_views.transform)
    first = frozen_features(classifier, random_views, view=StoredView(0, "light")).tensor()
    again = frozen_features(classifier, some, view=StoredView(0, "light")).tensor()
    other = frozen_features(classifier, random_views, view=StoredView(1, "light")).tensor()
    torch.testing.assert_close(again, first[3:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first, other)


def test_the_network_is_left_as_it_was(dataset):
    classifier = classifier_of()
    classifier.network.train()
    classifier.network.bn1.eval()
    modes = [m.training for m in classifier.network.modules()]
    state = {k: v.clone() for k, v in classifier.network.state_dict().items()}
    frozen_features(classifier, dataset)
    assert [m.training for m in classifier.network.modules()] == modes
    for name, value in classifier.network.state_dict().items():
        torch.testing.assert_close(value, state[name], atol=0, rtol=0)
        assert value.is_contiguous()


def test_live_features_are_the_classifiers_input(dataset):
    classifier = classifier_of()
    images = torch.stack([dataset[0][0], dataset[1][0]])
    network = classifier.network.eval()
    with torch.no_grad():
        normalised = (images / 255 - classifier.mean) / classifier.std
        wanted = network.forward_head(network.forward_features(normalised), pre_logits=True)
    torch.testing.assert_close(live_features(classifier, images), wanted)


def test_a_damaged_shard_is_computed_again(dataset, tmp_path, counted):
    classifier, store = classifier_of(), FeatureStore(tmp_path / "store")
    before = frozen_features(classifier, dataset, store=store).tensor()
    (shard,) = (tmp_path / "store").glob("*/*/*.features")
    shard.write_bytes(shard.read_bytes()[:200])
    after = frozen_features(classifier, dataset, store=store).tensor()
    assert counted == [7, 7]
    torch.testing.assert_close(after, before)
