"""Answers in parts: nothing lost, nothing double, whatever ends the work."""

import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.registry import _registry

from finetune import storage
from finetune.cli import main
from finetune.prediction import parts
from tests.own_process import exit_code, started

WriteCheckpoint = Callable[..., Path]
Rows = list[dict[str, object]]


@pytest.fixture
def checkpoint(write_probe: WriteCheckpoint) -> str:
    return str(write_probe("parts"))


def predict(checkpoint: str, *images: object, **options: object) -> int:
    """The command on the CPU, in small parts."""
    given = {"output": "answers/", "part_size": 5, "accelerator": "cpu", **options}
    spelled = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    spelled = [each.removesuffix("=True") for each in spelled]
    return main(["predict", checkpoint, *map(str, images), *spelled])


def answers(folder: str = "answers") -> Rows:
    """All rows, as any reader of Parquet takes the folder for one table."""
    rows: Rows = pyarrow.parquet.read_table(folder).to_pylist()
    return rows


def table_of(checkpoint: str, *images: object) -> Rows:
    call = ["predict", checkpoint, *map(str, images), "--accelerator=cpu", "--batch-size=1"]
    assert main([*call, "--output=whole.parquet", "--overwrite"]) == 0
    return answers("whole.parquet")


def bad_images(folder: str = "answers") -> dict[str, str]:
    tables = [pyarrow.parquet.read_table(path) for path in Path(folder).glob("_bad-*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row["reason"] for row in rows}


def write_shard(path: Path, images: list[Path]) -> Path:
    """As WebDataset lays it out: an image and its label one after the other."""
    with tarfile.open(path, "w") as shard:
        for number, image in enumerate(images):
            for name, content in (
                (f"{number:04d}.png", image.read_bytes()),
                (f"{number:04d}.cls", b"0"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    return path


def test_parts_hold_what_one_table_holds(
    checkpoint: str, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(checkpoint, colour_folder, batch_size=5) == 0
    assert "36 images answered in answers/, 36 of them now" in capsys.readouterr().out
    call = ["predict", checkpoint, str(colour_folder), "--accelerator=cpu", "--batch-size=5"]
    assert main([*call, "--output=whole.parquet"]) == 0
    assert answers() == answers("whole.parquet")  # bit for bit
    assert len(list(Path("answers").glob("part-*.parquet"))) == 8
    index = json.loads(Path("answers/_index.json").read_text())
    assert (index["complete"], index["images"], index["bad"]) == (True, 36, 0)
    assert predict(checkpoint, colour_folder) == 0
    assert "36 images answered in answers/, 0 of them now" in capsys.readouterr().out


def some_images(colour_folder: Path, number: int) -> list[str]:
    """A folder ``images`` of so many, of which ``1.png`` cannot be read."""
    Path("images").mkdir()
    for index, image in enumerate(sorted(colour_folder.rglob("*.png"))[:number]):
        Path(f"images/{index}.png").write_bytes(image.read_bytes())
    Path("images/1.png").write_text("<html>404</html>")
    return [f"images/{index}.png" for index in range(number) if index != 1]


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_was_ended_at_any_write_is_gone_on_with(
    checkpoint: str, colour_folder: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Of the index, of a list of bad images, of a part, and of the index at the end."""
    good = some_images(colour_folder, 8)
    put = storage.put

    class Ended(BaseException):
        """Nothing catches it."""

    def ended(file: Path, address: str) -> None:
        if when == "after":
            put(file, address)
        raise Ended

    for writes in range(20):
        puts = iter([put] * writes + [ended])
        monkeypatch.setattr(storage, "put", lambda *given, puts=puts: next(puts)(*given))
        try:
            assert predict(checkpoint, "images", part_size=3, on_bad_image="skip") == 0
            break
        except Ended:
            continue
    assert writes >= 3
    assert sorted(str(row["path"]) for row in answers()) == good
    assert [*bad_images()] == ["images/1.png"]


def until_half_of_a_part(arguments: list[str]) -> int:
    copy = shutil.copyfile

    def copied(source: Path, beside: Path) -> None:
        if "part-000001" in str(beside):
            beside.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        copy(source, beside)

    shutil.copyfile = copied  # type: ignore[assignment]
    return main(arguments)


def test_a_process_that_is_killed_leaves_no_half_of_a_part(
    checkpoint: str, colour_folder: Path
) -> None:
    good = some_images(colour_folder, 8)
    call = ["predict", checkpoint, "images", "--output=answers/", "--part-size=3"]
    call += ["--accelerator=cpu", "--on-bad-image=skip"]

    assert exit_code(started(until_half_of_a_part, call)) == -signal.SIGKILL
    assert len(answers()) == 2
    assert [name for name in os.listdir("answers") if name.startswith(".")]
    assert main(call) == 0
    assert sorted(str(row["path"]) for row in answers()) == good
    assert not [name for name in os.listdir("answers") if name.startswith(".")]


def test_a_list_of_bad_images_without_its_part_counts_for_nothing(
    checkpoint: str, colour_folder: Path
) -> None:
    assert predict(checkpoint, colour_folder) == 0
    part = min(Path("answers").glob("part-*.parquet"))
    whole = answers()
    beside = part.name.replace("part-", "_bad-").replace(".parquet", "-2.parquet")
    part.rename(part.with_name(beside))  # as if it had been killed between the two
    assert predict(checkpoint, colour_folder) == 0
    assert answers() == whole
    assert not list(Path("answers").glob("_bad-*"))


def test_bad_images_are_counted_and_listed_in_a_part_of_their_own(
    checkpoint: str, colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in "abcde":
        (images / f"{name}.png").write_text("no image")
    (images / "f.png").write_bytes(next(colour_folder.rglob("*.png")).read_bytes())
    assert predict(checkpoint, "images") == 1
    assert "images/a.png" in capsys.readouterr().err
    assert os.listdir("answers") == ["_index.json"]
    assert predict(checkpoint, "images", on_bad_image="skip") == 0
    assert [row["path"] for row in answers()] == ["images/f.png"]
    assert bad_images().keys() == {f"images/{name}.png" for name in "abcde"}
    told = capsys.readouterr()
    assert "left out 5" in told.err
    assert "1 images answered in answers/, 1 of them now" in told.out
    assert predict(checkpoint, "images", on_bad_image="skip") == 0  # the block of them is done
    assert "1 images answered in answers/, 0 of them now" in capsys.readouterr().out


def test_further_images_are_answered_and_others_refused(
    checkpoint: str, colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    sources = sorted(colour_folder.rglob("*.png"))
    for number in range(1, 8):
        os.link(sources[number], images / f"{number}.png")
    assert predict(checkpoint, "images") == 0
    os.link(sources[8], images / "8.png")
    assert predict(checkpoint, "images") == 0
    assert "8 images answered in answers/, 1 of them now" in capsys.readouterr().out
    assert [row["path"] for row in answers()] == [f"images/{n}.png" for n in range(1, 9)]
    before = {path: path.read_bytes() for path in Path("answers").iterdir()}
    os.link(sources[0], images / "0.png")
    assert predict(checkpoint, "images") == 1
    assert "part 0 answers others than images/0.png" in capsys.readouterr().err
    (images / "0.png").unlink()
    (images / "7.png").unlink()
    (images / "8.png").unlink()
    assert predict(checkpoint, "images") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path("answers").iterdir()} == before


def test_another_checkpoint_or_other_settings_are_refused(
    checkpoint: str,
    write_probe: WriteCheckpoint,
    colour_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = colour_folder / "red"
    assert predict(checkpoint, images) == 0
    before = answers()
    other = str(write_probe("other", noise=1.0))
    assert predict(other, images) == 2
    assert predict(checkpoint, images, topk=2) == 2
    assert predict(checkpoint, images, part_size=6) == 2
    lines = capsys.readouterr().err.splitlines()
    assert ["checkpoint" in lines[0], "top_k 2" in lines[1], "part_size 6" in lines[2]] == [
        True
    ] * 3
    assert answers() == before
    assert predict(other, images, overwrite=True) == 0
    assert len(answers()) == len(before)
    assert answers() != before


def test_nothing_is_written_among_other_files(
    checkpoint: str, colour_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    assert predict(checkpoint, colour_folder, output="mine/") == 2
    assert predict(checkpoint, colour_folder, output="mine/", overwrite=True) == 2
    assert predict(checkpoint, colour_folder, output=f"{colour_folder}/answers/") == 2
    Path("mine/_index.json").write_text("{}")
    assert predict(checkpoint, colour_folder, output="mine/") == 2
    assert sorted(os.listdir("mine")) == ["_index.json", "notes.txt"]
    assert predict(checkpoint, colour_folder, output="sftp://host/answers/") == 2
    assert predict(checkpoint, colour_folder, output="a.csv", part_size=3) == 2
    assert predict(checkpoint, colour_folder, safe_csv=True) == 2
    assert len(capsys.readouterr().err.splitlines()) == 7
    assert not (colour_folder / "answers").exists()


def test_shards_tables_and_stores_are_answered_as_their_files(
    checkpoint: str, colour_folder: Path
) -> None:
    images = sorted(colour_folder.rglob("*.png"))[:12]
    expected = [{**row, "path": ""} for row in table_of(checkpoint, *images)]
    Path("shards").mkdir()
    for number in range(3):
        write_shard(Path(f"shards/{number:02d}.tar"), images[number * 4 : number * 4 + 4])
    contents = [image.read_bytes() for image in images]
    cells = [{"bytes": content, "path": "x.png"} for content in contents]  # Hugging Face's
    for name, column in {"bytes": contents, "image": cells}.items():
        table = pyarrow.table({name: column, "label": [0] * 12})
        pyarrow.parquet.write_table(table, f"{name}.parquet", row_group_size=5)
    for image in images:
        os.link(image, f"{image.parent.name}-{image.name}")
    paths = [f"{image.parent.name}-{image.name}" for image in images]
    pyarrow.parquet.write_table(pyarrow.table({"path": paths}), "paths.parquet")
    memory = fsspec.filesystem("memory")
    for image in images:
        memory.pipe_file(f"/set/{image.parent.name}/{image.name}", image.read_bytes())
    memory.pipe_file("/set/.hidden.png", b"")
    memory.pipe_file("/set/notes.txt", b"")
    sources = {
        "shards": ["shards/{00..02}.tar"],
        "pattern": ["shards/*.tar"],
        "bytes": ["bytes.parquet"],
        "image": ["image.parquet"],
        "paths": ["paths.parquet"],
        "store": ["memory://set/**"],
        "store-pattern": ["memory://set/*/*.png"],
        "file": [f"file://{image}" for image in images],
    }
    for name, given in sources.items():
        output = f"memory://out/{name}/"
        assert predict(checkpoint, *given, output=output, batch_size=1) == 0, name
        assert predict(checkpoint, *given, output=output, batch_size=1) == 0, name
        (Path("local") / name).mkdir(parents=True)
        memory.get(f"/out/{name}/*", f"local/{name}/")
        found = answers(f"local/{name}")
        assert [{**row, "path": ""} for row in found] == expected, name
        assert len({row["path"] for row in found}) == 12
        names = [row["path"] for row in found]
        assert names[0] == {
            "shards": "shards/00.tar::0000.png",
            "bytes": "bytes.parquet::0",
            "paths": paths[0],
            "store": f"memory:///set/blue/{images[0].name}",
            "file": f"file://{images[0]}",
        }.get(name, names[0])


def test_an_image_is_answered_once_whatever_names_it(
    checkpoint: str, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pattern names a folder and what is in it; files before a table move none of its rows."""
    Path("set/deep").mkdir(parents=True)
    images = sorted(colour_folder.rglob("*.png"))
    for number, image in enumerate(images[:4]):
        os.link(image, f"set/{number}.png")
        os.link(image, f"set/deep/{number}.png")
    contents = [image.read_bytes() for image in images[:12]]
    pyarrow.parquet.write_table(pyarrow.table({"bytes": contents}), "a.parquet", row_group_size=3)
    none = pyarrow.table({"bytes": contents}).slice(0, 0)
    pyarrow.parquet.write_table(none, "none.parquet")
    for number, given in enumerate((["set/**"], ["se*/**"], ["none.parquet", "set"])):
        assert predict(checkpoint, *given, output=f"{number}/") == 0
        assert len({row["path"] for row in answers(f"{number}")}) == len(answers(f"{number}")) == 8
    for _ in range(2):
        assert predict(checkpoint, "set/0.png", "a.parquet", output="both/") == 0
    assert len(answers("both")) == 13
    assert predict(checkpoint, "set/deep", "set/") == 2
    assert predict(checkpoint, "set", "set") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not Path("answers").exists()


@pytest.mark.parametrize("cut", ["middle of a file", "header", "end"])
def test_a_damaged_shard_is_told_and_nothing_of_it_is_kept(
    checkpoint: str, colour_folder: Path, capsys: pytest.CaptureFixture[str], cut: str
) -> None:
    images = sorted(colour_folder.rglob("*.png"))[:6]
    whole = write_shard(Path("a.tar"), images[:2])
    shard = write_shard(Path("b.tar"), images)
    with tarfile.open(shard) as opened:
        third = opened.getmember("0003.png")
    content = bytearray(shard.read_bytes())
    if cut == "header":  # which the standard library takes for the end
        content[third.offset : third.offset + 512] = b"x" * 512
    else:
        del content[third.offset_data + 100 if cut == "middle of a file" else third.offset :]
    shard.write_bytes(content)
    assert predict(checkpoint, whole, shard) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "whole tar file at b.tar" in line
    assert len(answers()) == 2
    assert predict(checkpoint, whole, shard, on_bad_image="skip") == 0
    assert len(answers()) == 5
    assert [*bad_images()] == ["b.tar"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [1, 2]}, "Expected bytes in the column image"),
        ({"path": [1, 2]}, "Expected text in the column path"),
        ({"name": ["a", "b"]}, "Expected a column image, bytes"),
    ],
)
def test_a_table_without_images_is_refused(
    checkpoint: str, capsys: pytest.CaptureFixture[str], columns: dict[str, list[object]], said: str
) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), "a.parquet")
    assert predict(checkpoint, "a.parquet") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    Path("a.parquet").write_bytes(b"PAR1 nothing")
    assert predict(checkpoint, "a.parquet") == 1
    assert "whole Parquet table" in capsys.readouterr().err


def test_what_a_table_names_lies_below_its_folder(checkpoint: str, colour_folder: Path) -> None:
    """A stranger's table opens no other files, and no socket."""
    outside = str(next(colour_folder.rglob("*.png")))
    Path("set").mkdir()
    os.link(outside, "set/a.png")
    named = [outside, "../whole.parquet", "http://localhost:1/a.png", "gone.png", None, "a.png"]
    pyarrow.parquet.write_table(pyarrow.table({"path": named}), "set/a.parquet")
    assert predict(checkpoint, "set/a.parquet", on_bad_image="skip") == 0
    assert [row["path"] for row in answers()] == ["a.png"]
    assert len(bad_images()) == 5


class BreakingStore(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Refuses as object stores do."""

    protocol = "s3"
    fails: str = ""

    def info(self, path: str, **_: object) -> dict[str, object]:
        self._fail("credentials", PermissionError("Access Denied"))
        return {"name": path, "size": 10, "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, object]]:
        self._fail("bucket", FileNotFoundError("The specified bucket does not exist"))
        self._fail("listing", PermissionError("Forbidden"))
        return []

    def _open(self, path: str, **_: object) -> io.BytesIO:
        self._fail("read", ConnectionResetError("Connection reset by peer"))
        return io.BytesIO(b"0123456789")

    def put_file(self, *_: object, **__: object) -> None:
        self._fail("bucket", FileNotFoundError("The specified bucket does not exist"))

    def _fail(self, what: str, error: Exception) -> None:
        if type(self).fails == what:
            raise error


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("credentials", "Expected to read s3://bucket/a.png"),
        ("read", "Expected to read s3://bucket/a.png"),
        ("bucket", "Expected to write s3://bucket/answers/_index.json"),
        ("listing", "Expected to read s3://bucket/answers/"),
    ],
)
def test_what_a_store_refuses_is_one_line(
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
    said: str,
) -> None:
    monkeypatch.setitem(_registry, "s3", BreakingStore)
    BreakingStore.clear_instance_cache()
    monkeypatch.setattr(BreakingStore, "fails", fails)
    into = "s3://bucket/answers/" if fails in ("bucket", "listing") else "answers/"
    assert predict(checkpoint, "s3://bucket/a.png", output=into, on_bad_image="skip") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"finetune: {said}")
    assert "check the address, the credentials and the network" in line
    if not into.startswith("s3"):
        assert os.listdir("answers") == ["_index.json"]


def test_nothing_is_kept_of_what_was_answered(
    checkpoint: str, colour_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more images are listed, and never more answers held, than a block and its next."""
    held: list[int] = []
    write_part = parts.write_part

    def counted(folder: str, number: int, block: object, batches: object, *a: object, **k: object):
        held.append(len(block.files))  # type: ignore[attr-defined]
        return write_part(folder, number, block, batches, *a, **k)  # type: ignore[arg-type]

    monkeypatch.setattr("finetune.prediction.parts_answerer.write_part", counted)
    assert predict(checkpoint, colour_folder, part_size=3) == 0
    assert held == [3] * 12
