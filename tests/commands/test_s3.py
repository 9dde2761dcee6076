"""An object store on loopback: read, written, gone on with, and what it refuses."""

import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet
import pytest
import torch

from finetune.cli import main
from finetune.training.checkpoints import read_checkpoint

REASON = "needs the packages s3fs, moto, flask and flask-cors of the extra dev"
pytest.importorskip("s3fs", reason=REASON)
pytest.importorskip("flask_cors", reason=REASON)
moto = pytest.importorskip("moto.server", reason=REASON)

# botocore 1.43 and moto 5.2 under Python 3.12 and later.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utc:DeprecationWarning")
WriteCheckpoint = Callable[..., Path]
BUCKET = "s3://photos"


class Cut(threading.Thread):
    """Hands connections on to the server, and breaks off what answers to a name with ``cut``."""

    def __init__(self, server: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self.hand_on, args=[client], daemon=True).start()

    def hand_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.server) as server:
            cut = threading.Event()
            back = threading.Thread(target=self.answers, args=[server, client, cut], daemon=True)
            back.start()
            try:
                while request := client.recv(65536):
                    if request.startswith(b"GET ") and b"/cut." in request:
                        cut.set()
                    server.sendall(request)
            except OSError:
                pass

    @staticmethod
    def answers(server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        try:
            while answer := server.recv(65536):
                if cut.is_set():
                    client.sendall(answer[: len(answer) // 2])
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)
        except OSError:
            pass


def tar_of(images: list[Path]) -> bytes:
    """A shard with a label beside each image."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as shard:
        for image in images:
            label = image.parent.name
            for ending, data in (("png", image.read_bytes()), ("cls", label.encode())):
                info = tarfile.TarInfo(f"{label}-{image.stem}.{ending}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture(scope="module")
def store(colour_folder: Path) -> Iterator[None]:
    """A bucket that holds 36 images, and one whose reading breaks off."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    between = Cut(server.get_host_and_port())
    between.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{between.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "me")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", "none")
        s3 = fsspec.filesystem("s3", use_listings_cache=False)
        s3.mkdir("photos")
        images = sorted(colour_folder.rglob("*.png"))
        for image in images:
            s3.pipe_file(f"photos/all/{image.parent.name}/{image.name}", image.read_bytes())
        s3.pipe_file("photos/broken/a.png", images[0].read_bytes())
        s3.pipe_file("photos/broken/cut.png", images[1].read_bytes())
        s3.pipe_file("photos/shards/0.tar", tar_of(images[:20]))
        s3.pipe_file("photos/shards/1.tar", tar_of(images[20:]))
        s3.pipe_file("photos/broken/cut.tar", tar_of(images))
        s3.pipe_file("photos/broken/all.tar.gz", b"packed")
        yield
    between.listener.close()
    server.stop()


@pytest.fixture
def checkpoint(write_probe: WriteCheckpoint) -> str:
    return str(write_probe("s3"))


def predict(checkpoint: str, images: str, output: str, *options: str) -> int:
    given = ["--part-size=5", "--accelerator=cpu", f"--output={output}", *options]
    return main(["predict", checkpoint, images, *given])


def parts(folder: str) -> dict[str, bytes]:
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    names = s3.glob(f"{folder}/part-*.parquet")
    return {name: s3.cat_file(name) for name in names}


def test_a_store_is_read_and_written_and_gone_on_with(
    store: None, checkpoint: str, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(checkpoint, f"{BUCKET}/all/**", f"{BUCKET}/answers/") == 0
    assert "36 images answered" in capsys.readouterr().out
    whole = parts("photos/answers")
    assert len(whole) == 8
    assert predict(checkpoint, str(colour_folder), "here/") == 0
    capsys.readouterr()
    s3 = fsspec.filesystem("s3")
    s3.get("photos/answers/", "fetched/", recursive=True)
    here, there = (pyarrow.parquet.read_table(name).to_pylist() for name in ("here", "fetched"))
    for one, other in zip(here, there, strict=True):
        assert Path(one.pop("path")).name == Path(other.pop("path")).name
        assert one == other
    for name in list(whole)[2:4]:
        s3.rm_file(name)
    assert predict(checkpoint, f"{BUCKET}/all/**", f"{BUCKET}/answers/") == 0
    assert "36 images answered in s3://photos/answers/, 10 of them now" in capsys.readouterr().out
    assert parts("photos/answers") == whole


def test_a_read_that_breaks_off_ends_in_a_line_and_nothing_half_written(
    store: None, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = f"{BUCKET}/broken/*.png", f"{BUCKET}/of-broken/"
    assert predict(checkpoint, images, output, "--part-size=1") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "s3://photos/broken/cut.png" in line
    assert len(parts("photos/of-broken")) == 1
    assert predict(checkpoint, images, output, "--part-size=1", "--on-bad-image=skip") == 1
    assert len(parts("photos/of-broken")) == 1  # a store that breaks off is no bad image


@pytest.mark.parametrize(
    ("images", "output"),
    [
        ("s3://none-here/**", "answers/"),
        ("s3://none-here/a.png", "answers/"),
        (f"{BUCKET}/all/red/**", "s3://none-here/answers/"),
    ],
)
def test_a_bucket_that_is_missing_is_one_line(
    store: None, checkpoint: str, capsys: pytest.CaptureFixture[str], images: str, output: str
) -> None:
    assert predict(checkpoint, images, output) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "none-here" in line
    assert not Path("answers").exists() or not list(Path("answers").glob("part-*"))


def test_credentials_that_are_refused_are_one_line(
    store: None,
    checkpoint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        # From now on the server knows no user.
        patch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        assert predict(checkpoint, f"{BUCKET}/all/**", "answers/") == 1
        assert predict(checkpoint, f"{BUCKET}/all/red/00.png", f"{BUCKET}/refused/") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("check the address, the credentials" in line for line in lines)
    assert not parts("photos/refused")


def fit(root: str, name: str, *options: str) -> int:
    small = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.strategy=head"]
    small += ["--trainer.accelerator=cpu", "--data.cache=off", "--data.cache_dir=cache"]
    return main(["fit", f"--data.root={root}", f"--name={name}", *small, *options])


def copies() -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in Path("cache").rglob("*.tar")}


def test_a_fit_learns_from_the_shards_of_a_store_as_from_those_here(store: None, capsys) -> None:
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    Path("here").mkdir()
    for name in ("0.tar", "1.tar"):
        Path("here", name).write_bytes(s3.cat_file(f"photos/shards/{name}"))
    assert fit("here", "here") == 0
    assert fit(f"{BUCKET}/shards/{{0..1}}.tar", "there") == 0
    weights = [
        read_checkpoint(f"runs/{name}-1/checkpoints/best.ckpt").state_dict
        for name in ("here", "there")
    ]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    before = copies()
    assert set(before) == {"0.tar", "1.tar"}
    checkpoint = "--ckpt_path=runs/there-1/checkpoints/best.ckpt"
    assert main(["test", checkpoint, f"--data.root={BUCKET}/shards/{{0..1}}.tar"]) == 0
    assert copies() == before


def test_what_has_changed_on_a_store_is_copied_again(store: None, capsys) -> None:
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    for name in ("0.tar", "1.tar"):
        s3.copy(f"photos/shards/{name}", f"photos/changing/{name}")
    call = ["check", f"{BUCKET}/changing/*.tar", "--cache-dir=cache"]
    assert main(call) == 0
    before = copies()
    s3.copy("photos/shards/0.tar", "photos/changing/1.tar")
    assert main(call) == 0
    now = copies()
    assert now["0.tar"] == before["0.tar"]
    assert now["1.tar"] != before["1.tar"]
    s3.rm_file("photos/changing/1.tar")
    assert main(call) == 0
    assert set(copies()) == {"0.tar"}


@pytest.mark.parametrize(
    ("root", "words"),
    [
        (f"{BUCKET}/broken/cut.tar", "photos/broken/cut.tar"),
        (f"{BUCKET}/broken/all.tar.gz", "run gunzip on it"),
        (f"{BUCKET}/shards/{{0..2}}.tar", "photos/shards/2.tar"),
        (f"{BUCKET}/all/", "name tar shards or Parquet tables"),
        ("s3://none-here/{0..1}.tar", "none-here"),
        ("s3://none-here/*.tar", "none-here"),
    ],
)
def test_shards_that_cannot_be_had_are_one_line_and_nothing_half_written(
    store: None, capsys, root: str, words: str
) -> None:
    assert fit(root, "none") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not copies()
    assert not Path("runs").exists()


def test_credentials_that_are_refused_are_one_line_to_a_fit_too(
    store: None, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        assert fit(f"{BUCKET}/shards/0.tar", "refused") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the credentials" in line
    assert not copies()
