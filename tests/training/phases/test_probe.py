import pytest
import torch

import finetune.training.phases.probe as module
from finetune.data.datamodule import ImageFolderDataModule
from finetune.data.dataset import balancing_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.mark.parametrize(
    ("augmentation", "few", "rows"), [("light", 20, 8), ("none", 20, 1), ("light", 5, 1)]
)
def test_few_images_fit_the_final_layer_in_several_views_never_split_between_folds(
    run, augmentation, few, rows, colour_folder, tmp_path, monkeypatch
):
    seen = {}

    def fit_probe(features, labels, classes, **settings):
        seen.update(features=features, labels=labels, groups=settings["groups"])
        return whole(features, labels, classes, **settings)

    whole = module.fit_probe
    monkeypatch.setattr(module, "fit_probe", fit_probe)
    monkeypatch.setattr(module, "FEW_A_CLASS", few)
    fit, _, _ = run(colour_folder, tmp_path, "head", data={"augmentation": augmentation})
    count = len(fit.datamodule.images("train"))  # 27, 9 a class
    assert len(seen["features"]) == len(seen["labels"]) == rows * count
    for view in range(1, rows):
        own = slice(view * count, (view + 1) * count)
        assert torch.equal(seen["labels"][own], seen["labels"][:count])
        assert torch.equal(seen["groups"][own], seen["groups"][:count])
        assert not torch.equal(seen["features"][own], seen["features"][:count])


@pytest.mark.parametrize(
    ("images_a_class", "views", "expected"),
    [
        (0.5, 3, 8),
        (2, 3, 8),
        (10, 3, 6),
        (19, 3, 3),
        (19, 5, 5),
        (20, 3, 0),
        (2, 0, 0),
        (2, 12, 12),
    ],
)
def test_the_fewer_the_images_the_more_their_views(images_a_class, views, expected):
    assert module.views_of_few(images_a_class, views) == expected


def test_balanced_draws_reach_the_probe(data_of, classifier_of, colour_folder, monkeypatch):
    datamodule = data_of(colour_folder, balanced=True)
    classifier = classifier_of(datamodule)
    labels = torch.tensor([0] * 6 + [1] * 2 + [2])
    counts = dict(zip(datamodule.class_names, labels.bincount().tolist(), strict=True))
    monkeypatch.setattr(ImageFolderDataModule, "class_counts", lambda *_: counts)
    weights = module.sample_weights(classifier, datamodule, labels)
    torch.testing.assert_close(torch.zeros(3).index_add_(0, labels, weights), torch.full((3,), 3.0))
    drawn = balancing_weights(labels.tolist())
    torch.testing.assert_close(weights / weights.sum(), (drawn / drawn.sum()).float())
