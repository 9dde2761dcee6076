from pathlib import Path

import torch
from PIL import Image

from finetune.data.decoding import ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.data.views import SeveralViews
from finetune.spec.preprocessing import Preprocessing

GREY = Preprocessing(image_size=24, mean=(0.5,), std=(0.2,))
SMALL, LARGE = Preprocessing(image_size=32), Preprocessing(image_size=64, crop_fraction=1.0)


def image(folder: Path) -> Path:
    pixels = torch.randint(256, (120, 160, 3), generator=torch.Generator().manual_seed(0))
    path = folder / "image.png"
    Image.fromarray(pixels.byte().numpy()).save(path)
    return path


def test_one_view_is_the_evaluation_transform_bit_for_bit(tmp_path: Path) -> None:
    path = image(tmp_path)
    for preprocessing in (SMALL, GREY):
        views = SeveralViews([preprocessing])
        reader = ImageReader(in_chans=preprocessing.in_chans, short_side=preprocessing.resize_size)
        (view,) = views(ImageReader.of([preprocessing])(path))
        assert torch.equal(view, evaluation_transform(preprocessing)(reader(path)))


def test_several_views_of_one_decoded_image(tmp_path: Path) -> None:
    views = SeveralViews([SMALL, LARGE, GREY])
    reader = ImageReader.of([SMALL, LARGE, GREY])
    assert (reader.in_chans, reader.short_side) == (3, 64)
    decoded = reader(image(tmp_path))
    shapes = [tuple(view.shape) for view in views(decoded)]
    assert shapes == [(3, 32, 32), (3, 64, 64), (1, 24, 24)]
    assert torch.equal(views(decoded)[1], evaluation_transform(LARGE)(decoded))
