"""``finetune serve``: whom it serves, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from finetune.cli import main

WriteCheckpoint = Callable[..., Path]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--token where others can reach"),
        (["--token", "short"], "at least 16"),
        (["--token", "with blanks in its middle"], "at least 16"),
        (["--port", "-1"], "port"),
        (["--corrections", "a.ckpt"], "--corrections"),
    ],
)
def test_a_call_that_cannot_be_meant_is_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.ckpt").write_bytes(b"")
    assert main(["serve", "a.ckpt", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_corrections_never_lie_among_the_images(
    write_probe: WriteCheckpoint, colour_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["serve", str(write_probe("probe")), "--accelerator", "cpu", "--corrections"]
    assert main([*call, str(colour_folder / "kept")]) == 2
    assert "outside the images" in capsys.readouterr().err
    assert not (colour_folder / "kept").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to drain at")
def test_what_is_in_work_is_answered_when_it_is_told_to_end(
    write_probe: WriteCheckpoint, colour_folder: Path
) -> None:
    command = [sys.executable, "-m", "finetune", "serve", str(write_probe("probe")), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--accelerator", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    found = re.search(r"serving 3 classes at http://127\.0\.0\.1:(\d+) ", process.stdout.readline())
    assert found
    place = ("127.0.0.1", int(found[1]))
    content = (colour_folder / "red" / "03.png").read_bytes()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    with closing(socket.create_connection(place, timeout=60)) as connection:
        connection.sendall(head.encode() + content[:100])
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        while True:  # nobody new is let in
            try:
                socket.create_connection(place, timeout=5).close()
            except OSError:
                break
            time.sleep(0.05)
        connection.sendall(content[100:])
        received = b""
        while part := connection.recv(65536):
            received += part
    head_of_answer, _, body = received.partition(b"\r\n\r\n")
    assert head_of_answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body)["answers"][0]["prediction"] in ("blue", "green", "red")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert errors == ""
