from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.preview import CAPTION, MOST, TILE, batch_image, write_batch_image


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_lies_where_its_number_says(channels: int) -> None:
    values = torch.linspace(0, 255, 10).byte()
    images = values[:, None, None, None].expand(-1, channels, 5, 5)
    sheet = np.asarray(batch_image(images, torch.zeros(10, dtype=torch.int64), ["a"]))
    assert sheet.shape == (2 * (TILE + CAPTION), 8 * TILE, 3)
    for index, value in enumerate(values.tolist()):
        y, x = index // 8 * (TILE + CAPTION) + TILE // 2, index % 8 * TILE + TILE // 2
        assert sheet[y, x].tolist() == [value] * 3


def test_captions_say_the_label() -> None:
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

    def caption(labels: torch.Tensor, names: list[str]) -> np.ndarray:
        return np.asarray(batch_image(image, labels, names))[TILE:]

    ant = caption(torch.tensor([0]), ["ant", "bee"])
    bee = caption(torch.tensor([1]), ["ant", "bee"])
    assert (ant < 128).any()
    assert not np.array_equal(ant, bee)
    assert np.array_equal(bee, caption(torch.tensor([0]), ["bee", "ant"]))
    mixed = caption(torch.tensor([[0.3, 0.7]]), ["ant", "bee"])
    assert not np.array_equal(mixed, bee)


def test_long_names_and_large_batches_stay_on_the_sheet(tmp_path: Path) -> None:
    path = tmp_path / "run/batch.png"
    write_batch_image(
        torch.randint(256, (100, 3, 8, 8)).byte(),
        torch.zeros(100, dtype=torch.int64),
        ["日本 " * 50],
        path,
    )
    with Image.open(path) as sheet:
        assert sheet.size == (8 * TILE, MOST // 8 * (TILE + CAPTION))
