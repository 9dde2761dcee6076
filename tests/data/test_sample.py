import re
from pathlib import Path

import pytest

from finetune.data import sample
from finetune.data.folder import scan_folder
from finetune.data.sample import CROPS, PHOTOGRAPHS, write_sample
from finetune.errors import ImageFolderError
from finetune.extras import remedy
from finetune.spec.images import file_id


def hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): file_id(path)
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def sample_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "deep" / "images"
    write_sample(root)
    return root


def test_the_sample_is_a_complete_split_folder(sample_root: Path) -> None:
    folder = scan_folder(sample_root)
    assert folder.class_names == tuple(sorted(PHOTOGRAPHS))
    assert len(PHOTOGRAPHS) == 12
    assert folder.unused == ()
    for split, count in CROPS.items():
        images = folder.of_split(split)
        assert [sum(i.label == label for i in images) for label in range(12)] == [count] * 12


def test_no_crop_is_written_twice(sample_root: Path) -> None:
    found = hashes(sample_root)
    assert len(set(found.values())) == len(found)


def test_the_sample_is_the_same_every_time(sample_root: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(sample_root)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.parametrize("size", [(384, 191), (1000, 872)])
def test_stripes_share_no_pixel(size: tuple[int, int]) -> None:
    train, val, test = (sample._stripe(size, split) for split in ("train", "val", "test"))
    assert train[2] + sample.GAP <= val[0] < val[2]
    assert val[2] + sample.GAP <= test[0] < test[2] == size[0]
    # Every crop is cut out of a square inside its stripe, the smallest one too.
    assert val[2] - val[0] >= sample.SIDES[0] * 2**0.5


def test_a_second_call_changes_nothing_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    write_sample(tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    write_sample(tmp_path / "s")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ImageFolderError, match="name another folder"):
        write_sample(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_call_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "_write_class", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_image_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "find_spec", lambda name: None)
    with pytest.raises(ImageFolderError, match=re.escape(remedy("demo"))):
        write_sample(tmp_path / "s")
