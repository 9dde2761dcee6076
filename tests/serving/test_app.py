"""What the server answers, and what it refuses: in JSON, in one sentence, and never by failing."""

import io
import re
import shutil
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from finetune.combining.calibrated_answer import Calibration
from finetune.combining.ensemble import Ensemble
from finetune.combining.members import ClassifierMember
from finetune.combining.number_intervals import IntervalRule
from finetune.data.manifest import read_manifest
from finetune.errors import UsageError
from finetune.prediction import predict
from finetune.prediction.feature_space import features_of
from finetune.serving.answers import json_answers
from finetune.serving.app import PAGE
from finetune.serving.budget import Limits
from finetune.serving.corrections import Corrections
from finetune.serving.engine import Engine
from finetune.serving.neighbours import Neighbours
from finetune.spec.images import ImageRef, file_id
from finetune.spec.splits import SplitRecord, Standing
from finetune.tasks.multiclass import MULTICLASS
from finetune.tasks.multilabel import MULTILABEL
from finetune.tasks.regression import REGRESSION
from finetune.training.classifier import ImageClassifier

TOKEN = "a-word-of-sixteen-letters"
POSTED = ("/predict", "/explain", "/similar", "/correct?label=red")


@pytest.fixture(scope="module")
def client(classifier, serve) -> TestClient:
    return serve(classifier)


@pytest.fixture(autouse=True)
def no_socket_outwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="module")
def files(colour_folder: Path) -> list[Path]:
    return sorted(colour_folder.rglob("*.png"))[::4]


def multipart(contents: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"secret-{n}.png", content)) for n, content in enumerate(contents)]


def png(width: int, height: int) -> bytes:
    """A header that claims so many pixels, and nothing behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def same(found: dict[str, object], expected: dict[str, object]) -> None:
    """Equal, numbers up to the rounding of another batch."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float | dict):
            assert found[key] == pytest.approx(value, abs=1e-6)
        else:
            assert found[key] == value, key


def test_the_answers_are_those_of_predict(client, classifier, files) -> None:
    expected = json_answers(predict(classifier, files))
    assert {"rejected", "prediction_set", "strangeness", "unknown"} <= expected[0].keys()
    together = client.post("/predict", files=multipart([file.read_bytes() for file in files]))
    assert together.status_code == 200
    for number, (answer, wanted) in enumerate(
        zip(together.json()["answers"], expected, strict=True)
    ):
        same(answer, {"image": number, **wanted})
    for file, wanted in zip(files, expected, strict=True):
        (answer,) = client.post("/predict", content=file.read_bytes()).json()["answers"]
        same(answer, {"image": 0, **wanted})


def test_what_arrives_together_is_answered_in_one_batch(classifier, files) -> None:
    engine = Engine(classifier, images_in_work=100)
    batches: list[int] = []
    whole = engine._answers
    begin = threading.Event()

    def answers(views):
        begin.wait()
        batches.append(len(views))
        return whole(views)

    engine._answers = answers
    asked = [engine.ask([file.read_bytes()]) for file in files * 4]
    begin.set()
    found = [question.answer.result(timeout=30) for (question,) in asked]
    for answer, wanted in zip(found, json_answers(predict(classifier, files)) * 4, strict=True):
        same(answer, wanted)
    assert len(batches) < len(asked) / 4
    assert engine.in_work.taken == 0


def test_an_ensemble_says_whether_its_members_agree(classifier, serve, files) -> None:
    torch.manual_seed(1)
    other = ImageClassifier(classifier.class_names, "test_resnet", pretrained=False, image_size=48)
    both = [classifier, other.eval()]
    ensemble = Ensemble(
        [ClassifierMember(each, str(each.preprocessing.image_size)) for each in both]
    )
    (answer,) = serve(ensemble).post("/predict", content=files[0].read_bytes()).json()["answers"]
    same(answer, {"image": 0, **json_answers(predict(ensemble, files[0]))[0]})
    assert "disagreement" in answer


def test_several_labels_are_a_list(serve, files, tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = ImageClassifier(
        ("big", "red", "round"), "test_resnet", pretrained=False, image_size=32, task="multilabel"
    ).eval()
    kept = Corrections(tmp_path / "kept", labels.class_names, MULTILABEL)
    client = serve(labels, corrections=kept)
    content = files[0].read_bytes()
    (answer,) = client.post("/predict", content=content).json()["answers"]
    assert isinstance(answer["prediction"], list)
    same(answer, {"image": 0, **json_answers(predict(labels, files[0]))[0]})
    drawn = client.post("/explain?class=red", content=content)
    assert (drawn.status_code, drawn.headers["content-type"]) == (200, "image/png")
    query = "/correct?label=round&label=big"
    assert client.post(query, content=content).json() == {"kept": 1}
    found = read_manifest(kept.table, tmp_path / "kept")
    assert [found.class_names[i] for i, has in enumerate(found.images[0].label) if has] == [
        "big",
        "round",
    ]
    assert client.post("/correct", content=content).json() == {"kept": 1}  # none of them


def test_a_number_is_a_number(serve, files, tmp_path: Path) -> None:
    torch.manual_seed(0)
    numbers = ImageClassifier(
        ("age",), "test_resnet", pretrained=False, image_size=32, task="regression"
    ).eval()
    rule = IntervalRule(alpha=0.1, half_width=2.5, images=50)
    numbers.details["calibration"] = Calibration(fit=None, interval=rule).to_dict()
    kept = Corrections(tmp_path / "kept", numbers.class_names, REGRESSION)
    client = serve(numbers, corrections=kept)
    content = files[0].read_bytes()
    (answer,) = client.post("/predict", content=content).json()["answers"]
    assert answer.keys() == {"image", "prediction", "lower", "upper"}
    assert answer["upper"] - answer["lower"] == pytest.approx(5)
    same(answer, {"image": 0, **json_answers(predict(numbers, files[0]))[0]})
    assert client.post("/explain", content=content).status_code == 200
    for wrong in ("", "?label=tall", "?label=1&label=2", "?label=nan"):
        assert client.post(f"/correct{wrong}", content=content).status_code == 422
    assert client.post("/correct?label=31.5", content=content).json() == {"kept": 1}
    found = read_manifest(kept.table, tmp_path / "kept", task="regression")
    assert [image.label for image in found.images] == [31.5]


def test_a_bad_image_beside_good_ones_is_told_by_its_place(client, files) -> None:
    good = files[0].read_bytes()
    broken = [good[: len(good) // 2], b"<html>404", b"", png(50_000, 50_000)]
    answered = client.post("/predict", files=multipart([good, *broken]))
    assert answered.status_code == 200
    first, *errors = answered.json()["answers"]
    assert "prediction" in first
    assert [error["image"] for error in errors] == [1, 2, 3, 4]
    kinds = ["damaged", "web page", "empty file", "50000 x 50000"]
    for error, kind in zip(errors, kinds, strict=True):
        assert kind in error["error"]
    for content in broken:
        alone = client.post("/predict", content=content)
        assert alone.status_code == 422
        assert client.post("/explain", content=content).status_code == 422


def test_nothing_of_the_machine_leaks(client, classifier, serve, files, capsys) -> None:
    truncated = files[0].read_bytes()[:200]
    said = [client.post("/predict", files=multipart([truncated])).text]
    said += [client.post(path, content=truncated).text for path in POSTED]
    said += [client.get(path).text for path in ("/model", "/healthz", "/absent", "/../etc/passwd")]
    said += [
        client.post("/predict", content=b"x" * 100, headers={"content-type": bad}).text
        for bad in ("multipart/form-data", "multipart/form-data; boundary=x")
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Engine, "_answers", lambda *_: 1 / 0)
        failed = serve(classifier).post("/predict", content=files[0].read_bytes())
    assert failed.status_code == 500
    assert "ZeroDivisionError" in capsys.readouterr().err
    for text in [*said, failed.text]:
        assert not re.search(r"secret|Traceback|/|\\\\|0x|Error|\.py|PIL", text.replace("/png", ""))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"content": b"x" * 2_000_001}, 413),
        ({"content": iter([b"x" * 1_000_000] * 3)}, 413),  # its length is not said before
        ({"files": multipart([b"x"] * 400)}, 413),
        ({"files": multipart([b"x"] * 7)}, 422),
        ({"data": {"image": "text"}, "files": multipart([b"x"])}, 422),
        (
            {"content": b"--x--", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            422,
        ),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data"}}, 422),
    ],
    ids=["long", "long unsaid", "many", "some broken", "a field", "no part", "no boundary"],
)
def test_too_much_and_too_little_are_refused(classifier, serve, body, status: int) -> None:
    client = serve(classifier, Limits(body_bytes=2_000_000, images=50))
    refused = client.post("/predict", **body)
    assert refused.status_code == status
    assert refused.headers["content-type"] == "application/json"
    assert ("error" in refused.json()) != ("answers" in refused.json())


def test_what_finds_no_room_is_told_to_come_again(classifier, serve, files) -> None:
    content = files[0].read_bytes()
    few = serve(classifier, Limits(images_in_work=2))
    narrow = serve(classifier, Limits(bytes_in_work=len(content)))
    for busy in (
        few.post("/predict", files=multipart([content] * 3)),
        narrow.post("/predict", content=content + b"x"),
    ):
        assert busy.status_code == 503
        assert busy.headers["retry-after"] == "1"
    for client in (few, narrow):  # all was given back
        for _ in range(3):
            assert client.post("/predict", content=content).status_code == 200


def test_a_slow_answer_ends_in_time_and_holds_nothing(classifier, serve, files) -> None:
    stop = threading.Event()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Engine, "_answers", lambda self, views: stop.wait() and [{}] * len(views))
        client = serve(classifier, Limits(answer_seconds=0.2, images_in_work=3))
        late = [client.post("/predict", content=files[0].read_bytes()) for _ in range(4)]
    assert [each.status_code for each in late] == [504, 504, 504, 503]
    stop.set()


def test_what_nobody_waits_for_is_freed_though_all_threads_are_busy(classifier, files) -> None:
    engine = Engine(classifier, 10)
    stop = threading.Event()
    stuck = [engine.run(lambda _: stop.wait(), b"x") for _ in range(4)]
    done: list[bytes] = []
    late = [engine.run(done.append, b"y"), *engine.ask([files[0].read_bytes()])]
    for question in late:
        question.drop()
        assert question.content is None
    assert engine.in_work.taken == 6  # none may come in their place as long as they are queued
    stop.set()
    for question in stuck:
        question.answer.result(timeout=30)
    assert engine.ask([files[0].read_bytes()])[0].answer.result(timeout=30)
    assert not done
    assert engine.in_work.taken == 0


def test_many_at_once_with_hostile_ones_among_them(client, classifier, files) -> None:
    """A short soak; the long one is benchmarks/bench_serve.py."""
    good = [file.read_bytes() for file in files]
    expected = json_answers(predict(classifier, files))
    hostile = [good[0][:300], b"", png(2**31 - 1, 2**31 - 1), b"\x00" * 10_000]

    def one(number: int) -> None:
        if number % 3 == 0:
            answer = client.post("/predict", content=hostile[number % len(hostile)])
            assert answer.status_code == 422
            return
        place = number % len(good)
        (found,) = client.post("/predict", content=good[place]).json()["answers"]
        same(found, {"image": 0, **expected[place]})

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(one, range(160)))


def test_the_map_lies_over_the_image(client, classifier, files) -> None:
    content = files[0].read_bytes()
    for query in ("", "?class=red"):
        shown = client.post(f"/explain{query}", content=content)
        assert shown.headers["content-type"] == "image/png"
        side = classifier.preprocessing.resize_size
        assert Image.open(io.BytesIO(shown.content)).size == (side, side)
    assert client.post("/explain?class=grey", content=content).status_code == 422
    long = io.BytesIO()
    Image.new("RGB", (1000, 10)).save(long, "PNG")
    refused = client.post("/explain", content=long.getvalue())
    assert refused.status_code == 422
    assert "times as long" in refused.json()["error"]


def test_the_nearest_training_images_are_shown(
    classifier, serve, colour_folder: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(colour_folder, tmp_path / "root"))
    names = [f"{colour}/{number:02d}.png" for colour in ("blue", "red") for number in range(12)]
    sides = ["test" if name.endswith("11.png") else "train" for name in names]
    record = SplitRecord(
        class_names=("blue", "red"),
        images=tuple(
            ImageRef(file_id(root / name), name, int(name.startswith("red"))) for name in names
        ),
        standings=tuple(Standing(side) for side in sides),
    )
    (root / "red/05.png").write_bytes((root / "green/00.png").read_bytes())  # another by now
    client = serve(classifier, neighbours=Neighbours(classifier, [record], root))
    assert client.get("/model").json()["compares"] is True
    assert str(tmp_path) not in client.post("/similar", content=b"x").text

    wanted = [root / name for name, side in zip(names, sides, strict=True) if side == "train"]
    wanted.remove(root / "red/05.png")
    asked = root / "blue/03.png"
    expected = features_of(classifier, asked).nearest(features_of(classifier, wanted), 6)
    answered = client.post("/similar", content=asked.read_bytes())
    found = answered.json()["nearest"]
    assert found[0]["distance"] == pytest.approx(0, abs=1e-6)
    assert [each["label"] for each in found] == [Path(near.path).parent.name for near in expected]
    distances = [near.distance for near in expected]
    assert [each["distance"] for each in found] == pytest.approx(distances, abs=1e-6)
    assert all(each["image"].startswith("data:image/webp;base64,") for each in found)
    with pytest.raises(UsageError, match="found none of those"):
        Neighbours(classifier, [record], tmp_path)
    with pytest.raises(UsageError, match="found none of those"):
        Neighbours(classifier, [], root)


def test_corrections_are_a_manifest_and_the_last_word_counts(
    classifier, serve, files, tmp_path: Path
) -> None:
    names = classifier.class_names
    first, second = (file.read_bytes() for file in files[:2])

    def opened() -> TestClient:
        kept = Corrections(tmp_path / "kept", names, MULTICLASS)
        return serve(classifier, corrections=kept)

    client = opened()
    assert client.get("/model").json()["keeps_corrections"] is True
    assert client.post("/correct?label=red", content=first).json() == {"kept": 1}
    assert client.post("/correct?label=blue", content=second).json() == {"kept": 2}
    # Its owner has a column and a row of their own.
    table = tmp_path / "kept/corrections.csv"
    lines = table.read_text().splitlines()
    Path(tmp_path / "kept/mine.png").write_bytes(files[2].read_bytes())
    own = ["mine.png,red,,,,mine"]
    table.write_text("\n".join([lines[0] + ",note", *(x + "," for x in lines[1:]), *own]) + "\n")
    client = opened()  # goes on where it was left
    assert client.post("/correct?label=green", content=first).json() == {"kept": 3}
    assert table.read_text().splitlines()[0] == "path,label,hash,prediction,confidence,note"
    assert own[0] in table.read_text()
    found = read_manifest(tmp_path / "kept/corrections.csv", tmp_path / "kept")
    said = {image.path.read_bytes(): found.class_names[image.label] for image in found.images}
    assert said == {first: "green", second: "blue", files[2].read_bytes(): "red"}
    for query, content in [
        ("label=grey", first),
        ("label=red&label=blue", first),
        ("", first),
        ("label=../../x", first),
        ("label=red", b"no image"),
    ]:
        assert client.post(f"/correct?{query}", content=content).status_code == 422
    assert len(list((tmp_path / "kept/images").iterdir())) == 2


def test_a_full_folder_of_corrections_says_so(
    classifier, serve, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = files[0].read_bytes()
    kept = Corrections(tmp_path / "kept", classifier.class_names, MULTICLASS)
    monkeypatch.setattr("finetune.serving.corrections.MOST_BYTES", len(content) - 1)
    refused = serve(classifier, corrections=kept).post("/correct?label=red", content=content)
    assert refused.status_code == 507
    assert str(tmp_path) not in refused.text
    assert not list(kept.images.iterdir())


def test_without_corrections_nothing_is_kept(client, files, tmp_path: Path) -> None:
    for path in ("/correct?label=red", "/similar"):
        assert client.post(path, content=files[0].read_bytes()).status_code == 404
    assert client.post("/predict", content=files[0].read_bytes()).status_code == 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", "Bearer \xe9"])
def test_without_the_token_only_the_page_is_shown(classifier, serve, files, given: str) -> None:
    client = serve(classifier, token=TOKEN)
    headers = {"authorization": given.encode("latin-1")} if given else {}
    assert client.get("/model", headers=headers).status_code == 401
    for path in POSTED:
        refused = client.post(path, content=files[0].read_bytes(), headers=headers)
        assert refused.status_code == 401
        assert TOKEN not in refused.text
    for path in (*PAGE, "/healthz"):
        assert client.get(path, headers=headers).status_code == 200
        assert TOKEN not in client.get(path).text
    right = {"authorization": f"Bearer {TOKEN}"}
    for host in ("localhost:8000", "proxy.example"):  # a proxy hands its own name on
        asked = {**right, "host": host, "origin": f"https://{host}"}
        done = client.post("/predict", content=files[0].read_bytes(), headers=asked)
        assert done.status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:8000.evil.example", 421),
        ("", 421),
    ],
)
def test_other_names_than_this_machines_are_refused(client, host: str, status: int) -> None:
    for path in ("/", "/model", "/healthz"):
        assert client.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_other_pages_cannot_post(client, files, headers: dict[str, str], status: int) -> None:
    answered = client.post("/predict", content=files[0].read_bytes(), headers=headers)
    assert answered.status_code == status
    assert "access-control-allow-origin" not in answered.headers


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_else(client) -> None:
    for path, (file, kind) in PAGE.items():
        answered = client.get(path)
        assert answered.content == file.read_bytes()
        assert answered.headers["content-type"].startswith(kind)
        assert not re.findall(r"""(?:https?:)?//[\w.]+\.\w|@import|url\(""", answered.text)
        policy = answered.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answered.headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert not re.search(r"<script(?![^>]*src)|<style| on\w+=| style=", page)


def test_every_refusal_is_json_with_the_same_headers(client) -> None:
    refused = [client.get("/absent"), client.get("/predict"), client.put("/model")]
    assert [each.status_code for each in refused] == [404, 405, 405]
    for each in refused:
        assert set(each.json()) == {"error"}
        assert "content-security-policy" in each.headers


def test_what_is_known_of_the_model(client, classifier) -> None:
    known = client.get("/model").json()
    assert known["class_names"] == list(classifier.class_names)
    assert known["task"] == "multiclass"
    assert known["unknown"] is True
    assert client.get("/healthz").json() == {"status": "ok"}
