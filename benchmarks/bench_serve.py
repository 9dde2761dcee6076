"""Soak `finetune serve`: many clients for minutes, hostile ones among them; its memory and delays.

    python benchmarks/bench_serve.py CKPT DIR [--minutes 5] [--clients 8]

One client in eight sends what is broken, huge, empty or slow. Answers are compared with those of
the same model called in a loop, whose speed stands beside. Linux alone: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

import finetune

LOOPED = 30


def hostile_files(good: bytes) -> list[bytes]:
    """Truncated, no image, empty, a bomb by its header, and one of 40 black megapixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    bomb += struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4
    rows = zlib.compress(b"\0" * (6400 * 3 + 1) * 6400, 9)
    size = b"IHDR" + struct.pack(">IIBBBBB", 6400, 6400, 8, 2, 0, 0, 0)
    black = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (size, b"IDAT" + rows, b"IEND")
    )
    return [good[: len(good) // 2], b"<html>404", b"", bomb, black, b"x" * (33 * 2**20)]


class Soak:
    """What all clients have seen."""

    def __init__(self, port: int, end: float) -> None:
        self.port, self.end = port, end
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.wrong = 0

    def connection(self) -> http.client.HTTPConnection:
        """A new one."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def honest(self, files: list[bytes], expected: list[str], first: int) -> None:
        """One good image after the other, over one connection."""
        connection = self.connection()
        place = first
        while time.monotonic() < self.end:
            place = (place + 1) % len(files)
            start = time.monotonic()
            connection.request("POST", "/predict", files[place])
            response = connection.getresponse()
            answer = json.loads(response.read())
            self.seconds.append(time.monotonic() - start)
            self.statuses[f"good {response.status}"] += 1
            if response.status == 503:
                time.sleep(1)
            elif answer["answers"][0]["prediction"] != expected[place]:
                self.wrong += 1

    def hostile(self, files: list[bytes]) -> None:
        """What is no good image, in turn, and now and then half a request."""
        number = 0
        while time.monotonic() < self.end:
            number += 1
            connection = self.connection()
            try:
                if number % 7 == 0:  # half a request, and silence
                    connection.putrequest("POST", "/predict")
                    connection.putheader("Content-Length", "1000000")
                    connection.endheaders(b"x")
                    time.sleep(2)
                    self.statuses["hostile silent"] += 1
                else:
                    connection.request("POST", "/predict", files[number % len(files)])
                    response = connection.getresponse()
                    response.read()
                    self.statuses[f"hostile {response.status}"] += 1
            except OSError as error:
                self.statuses[f"hostile {type(error).__name__}"] += 1
            finally:
                connection.close()


def memory(pid: int) -> int:
    """MiB that a process holds."""
    (kilobytes,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(kilobytes) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("images", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()

    paths = sorted(path for path in options.images.rglob("*") if path.is_file())[:200]
    files = [path.read_bytes() for path in paths]
    model = finetune.load(options.checkpoint)
    expected = model(paths).labels
    start = time.monotonic()
    for content in files[:LOOPED]:
        model(content)
    alone = LOOPED / (time.monotonic() - start)
    start = time.monotonic()
    model(files, num_workers=0)
    in_batches = len(files) / (time.monotonic() - start)

    command = [sys.executable, "-m", "finetune", "serve", options.checkpoint, "--port", "0"]
    server = subprocess.Popen([*command, "--accelerator", "cpu"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    (port,) = re.findall(r":(\d+) ", server.stdout.readline())
    try:
        held = [memory(server.pid)]
        soak = Soak(int(port), time.monotonic() + 60 * options.minutes)
        began = time.monotonic()
        hostile = max(1, options.clients // 8)
        threads = [
            *(
                threading.Thread(target=soak.honest, args=(files, expected, 25 * number))
                for number in range(options.clients - hostile)
            ),
            *(
                threading.Thread(target=soak.hostile, args=(hostile_files(files[0]),))
                for _ in range(hostile)
            ),
        ]
        for thread in threads:
            thread.start()
        while time.monotonic() < soak.end:
            time.sleep(2)
            held.append(memory(server.pid))
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
    finally:
        server.terminate()
    server.wait(timeout=90)

    p50, p99 = np.percentile(np.array(soak.seconds) * 1000, [50, 99])
    print(f"| model in a loop, one file a call | {alone:.1f} images a second |")
    print(f"| `model(files)`, 200 in one call | {in_batches:.1f} images a second |")
    print(f"| served | {len(soak.seconds) / took:.1f} good requests a second |")
    print(f"| delay | p50 {p50:.0f} ms, p99 {p99:.0f} ms |")
    fifths = [int(max(part)) for part in np.array_split(held[1:], 5)]
    print(f"| memory, MiB | {held[0]} before, then the most of each fifth of the time {fifths} |")
    print(f"| answers | {dict(soak.statuses)}, {soak.wrong} other than the loop's |")
    print(f"| exit | {server.returncode} |")


if __name__ == "__main__":
    main()
