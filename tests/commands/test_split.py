import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import split
from finetune.commands.verb import run
from finetune.data.folder import scan_folder
from finetune.errors import ImageError, UsageError
from finetune.spec.images import file_id


def main(arguments: list[str]) -> int:
    run(split, arguments)
    return 0


def add_images(root: Path, name: str, numbers: range) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng([number, *name.encode()]).integers(0, 256, (8, 8, 3))
        path = root / name / f"p{number // 3}_{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("ant", "bee"):
        add_images(tmp_path / "r", name, range(30))
    return tmp_path / "r"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_manifest_records_everything(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(root), "--folds", "3", "--group-by", r"(\w+)/(p\d+)", "--output", "split.csv"])
    written = rows(Path("split.csv"))
    assert {root / row["path"] for row in written} == {i.path for i in scan_folder(root).images}
    assert all(row["label"] == Path(row["path"]).parts[0] for row in written)
    assert all(row["hash"] == file_id(root / row["path"]) for row in written)
    assert {row["split"] for row in written} == {"train", "test"}
    assert {row["fold"] for row in written if row["split"] == "train"} == {"0", "1", "2"}
    assert {row["fold"] for row in written if row["split"] == "test"} == {""}
    sides = defaultdict(set)
    for row in written:
        sides[row["group"]].add((row["split"], row["fold"]))
    assert len(sides) == 20
    assert all(len(found) == 1 for found in sides.values())
    assert "--data.manifest split.csv" in capsys.readouterr().out


def test_a_column_of_the_manifest_may_name_the_groups(root: Path, tmp_path: Path) -> None:
    lines = [
        f"ant/{path.name},x,{i % 4}" for i, path in enumerate(sorted((root / "ant").iterdir()))
    ]
    lines += [f"bee/{path.name},y,{i % 5}" for i, path in enumerate((root / "bee").iterdir())]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,herd", *lines]))
    main([str(root), "--manifest", "labels.csv", "--group-by", "herd", "--output", "out.csv"])
    sides = defaultdict(set)
    for row in rows(Path("out.csv")):
        sides[row["group"]].add(row["split"])
    assert set(sides) == set("01234")
    assert all(len(found) == 1 for found in sides.values())


def test_added_images_leave_the_old_ones_where_they_are(root: Path) -> None:
    main([str(root), "--output", "old.csv"])
    add_images(root, "ant", range(100, 140))
    add_images(root, "wasp", range(10))
    main([str(root), "--previous", "old.csv", "--output", "new.csv"])
    old = {row["path"]: row["split"] for row in rows(Path("old.csv"))}
    new = {row["path"]: row["split"] for row in rows(Path("new.csv"))}
    assert len(new) == len(old) + 50
    assert all(new[path] == side for path, side in old.items())
    ants = [side for path, side in new.items() if path.startswith("ant/")]
    assert [ants.count(side) for side in ("train", "val", "test")] == [42, 14, 14]


def test_copies_stay_together(root: Path) -> None:
    content = (root / "ant/p0_0.png").read_bytes()
    for number in range(12):
        (root / f"ant/copy{number}.png").write_bytes(content)
    main([str(root), "--output", "split.csv"])
    sides = {r["split"] for r in rows(Path("split.csv")) if "copy" in r["path"]}
    assert len(sides) == 1


def test_nothing_is_overwritten_unasked(root: Path) -> None:
    Path("split.csv").write_text("precious")
    with pytest.raises(UsageError, match="--previous"):
        main([str(root), "--output", "split.csv"])
    assert Path("split.csv").read_text() == "precious"
    assert main([str(root), "--output", "split.csv", "--overwrite"]) == 0
    assert len(rows(Path("split.csv"))) == 60


def test_bad_files_stop_it_or_are_left_out(root: Path) -> None:
    (root / "ant/bad.jpg").write_text("<html>")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        main([str(root), "--output", "split.csv"])
    assert not Path("split.csv").exists()
    assert main([str(root), "--output", "split.csv", "--on_bad_image", "skip"]) == 0
    assert len(rows(Path("split.csv"))) == 60


@pytest.mark.parametrize(
    "wrong", [["--folds", "1"], ["--val_fraction", "1.2"], ["--group-by", "("], ["--fold", "3"]]
)
def test_wrong_calls_are_usage_errors(wrong: list[str], root: Path) -> None:
    with pytest.raises(UsageError):
        main([str(root), "--output", "split.csv", *wrong])


def test_shares_are_checked_also_where_the_folder_decides(root: Path) -> None:
    assert main([str(root), "--output", "split.csv"]) == 0
    again = [str(root), "--manifest", "split.csv", "--output", "other.csv"]
    for wrong in (["--val_fraction", "1.5"], ["--test_fraction", "-1"]):
        with pytest.raises(UsageError, match="at least 0 and below 1"):
            main([*again, *wrong])
