import numpy as np
import pytest

from finetune.training.features.datamodule import CachedActivationsDataModule
from finetune.training.features.store import Activations

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def test_kept_activations_are_drawn_as_images_are(data_of, colour_folder):
    datamodule = data_of(colour_folder, balanced=True)
    count = len(datamodule.images("train"))
    rows = Activations(
        [np.arange(count, dtype=np.float32)[:, None]], [(0, i) for i in range(count)]
    )
    kept = CachedActivationsDataModule(datamodule, [rows], None)
    drawn = [int(value) for batch, _ in kept.train_dataloader() for value in batch[:, 0]]
    expected = [draw.index for draw in datamodule.train_dataloader().sampler]
    assert drawn == expected
    assert len(set(drawn)) < count, "with replacement"
