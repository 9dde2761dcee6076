"""How the verbs grow with the images: peak memory, images a second, a killed node.

    python benchmarks/bench_scale.py --images 10000 100000
    python benchmarks/bench_scale.py --images 10000 --engines local ray
    python benchmarks/bench_scale.py --shards 10000 100000
    python benchmarks/bench_scale.py --rates PHOTOGRAPH.jpg
    python benchmarks/bench_scale.py --kill-a-node

Images are hard links of one small PNG, 1,000 a folder, so that nothing but the work itself is
measured; in shards they are 10,000 a tar file, no two alike. Processor time is told beside the
clock's, for a machine that is shared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image

from finetune.data.decoding import ImageReader
from finetune.data.transforms import evaluation_transform
from finetune.spec.preprocessing import Preprocessing
from finetune.tables.writing import open_table
from finetune.training.checkpoints import describe, plain, write_checkpoint
from finetune.training.classifier import ImageClassifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[])
    parser.add_argument("--engines", nargs="+", default=["local"])
    parser.add_argument("--shards", type=int, nargs="*", default=[])
    parser.add_argument("--rates", type=Path, default=None)
    parser.add_argument("--kill-a-node", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        folder = Path(name)
        checkpoint = tiny_checkpoint(folder / "tiny.ckpt")
        if given.images:
            print(
                "| engine | images | seconds | processor's | images a second | of it | peak, MiB |"
            )
        for number in given.images:
            images = linked(folder / f"{number}", number)
            for engine in given.engines:
                measure(checkpoint, images, number, engine, folder / f"{engine}-{number}")
        if given.shards:
            print(
                "| verb | images in shards | seconds | processor's | of it a second | peak, MiB |"
            )
        for number in given.shards:
            pattern = sharded(folder / f"shards-{number}", number)
            cache = f"--cache-dir={folder / f'cache-{number}'}"
            split = ["split", pattern, cache, f"--output={folder / f'{number}.csv'}"]
            output = f"--output={folder / f'answers-{number}'}/"
            for call in (
                ["check", pattern, cache],
                split,
                ["predict", str(checkpoint), pattern, output, "--accelerator=cpu"],
            ):
                seconds, busy, peak = timed(call)
                print(
                    f"| {call[0]} | {number:,} | {seconds:.0f} | {busy:.0f} | {number / busy:.0f} "
                    f"| {peak:.0f} |",
                    flush=True,
                )
        if given.rates is not None:
            rates(given.rates)
        if given.kill_a_node:
            kill_a_node(checkpoint, linked(folder / "killed", 2000), folder)


def tiny_checkpoint(path: Path) -> Path:
    torch.manual_seed(0)
    names = ("a", "b", "c")
    classifier = ImageClassifier(names, "test_resnet", pretrained=False, image_size=32)
    entry = describe(
        names, "test_resnet", classifier.preprocessing, network=classifier.spec, data={}
    )
    write_checkpoint(
        path,
        state_dict=classifier.state_dict(),
        hyper_parameters=plain(dict(classifier.hparams)),
        entry=entry,
    )
    return path


def linked(root: Path, number: int) -> Path:
    """So many images of 64 x 64 pixels; of each folder's 1,000 one is a file of its own."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    first = root
    for index in range(number):
        folder = root / f"{index // 1000:05d}"
        if index % 1000 == 0:
            folder.mkdir(parents=True)
            first = folder / "000.png"
            Image.fromarray(pixels).save(first)
        else:
            os.link(first, folder / f"{index % 1000:03d}.png")
    return root


def sharded(folder: Path, number: int) -> str:
    """The pattern of shards with so many JPEGs of 64 x 64 pixels, of ten classes.

    No two are alike: there are a thousand, and behind their ends, where nobody looks, a number.
    """
    rng = np.random.default_rng(0)
    folder.mkdir()
    contents = []
    for _ in range(1000):
        colours = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        content = BytesIO()
        Image.fromarray(colours.repeat(8, 0).repeat(8, 1)).save(content, "JPEG")
        contents.append(content.getvalue())
    for start in range(0, number, 10_000):
        with tarfile.open(folder / f"{start // 10_000:04d}.tar", "w") as shard:
            for index in range(start, min(start + 10_000, number)):
                image = contents[index % 1000] + index.to_bytes(8, "big")
                for name, data in (("jpg", image), ("cls", f"{index % 10}".encode())):
                    info = tarfile.TarInfo(f"{index:07d}.{name}")
                    info.size = len(data)
                    shard.addfile(info, BytesIO(data))
                shard.members.clear()  # it would keep all
    return f"{folder}/*.tar"


# The peak of its own: what wait4 tells begins with that of the process which has started it.
CALL = """
import re, sys
from pathlib import Path
from finetune.cli import main
status = main(sys.argv[1:])
print(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
sys.exit(status)
"""


def timed(call: list[str]) -> tuple[float, float, float]:
    """Seconds by the clock and of the processor, and the peak in MiB, of a command (Linux)."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, "-c", CALL, *call], stdout=subprocess.DEVNULL, stderr=said
        )
        _, status, used = os.wait4(child.pid, 0)
        assert status == 0
        said.seek(0)
        peak = int(said.read().split()[-1]) / 1024
    return time.monotonic() - began, used.ru_utime + used.ru_stime, peak


def measure(checkpoint: Path, images: Path, number: int, engine: str, output: Path) -> None:
    call = ["predict", str(checkpoint), str(images), f"--output={output}/", f"--engine={engine}"]
    seconds, busy, peak = timed([*call, "--accelerator=cpu", "--devices=1"])
    rows = sum(pyarrow.parquet.read_metadata(p).num_rows for p in output.glob("part-*.parquet"))
    assert rows == number
    print(
        f"| {engine} | {number:,} | {seconds:.0f} | {busy:.0f} | {number / seconds:.0f} "
        f"| {number / busy:.0f} | {peak:.0f} |",
        flush=True,
    )


def rates(photograph: Path) -> None:
    """Images that one core decodes and transforms a second, and bytes that the disk is read."""
    preprocessing = Preprocessing()
    reader, transform = ImageReader.of([preprocessing]), evaluation_transform(preprocessing)
    content = photograph.read_bytes()
    torch.set_num_threads(1)
    began, count = time.process_time(), 0
    while time.process_time() - began < 5:
        transform(reader.decode(content, name="photograph"))
        count += 1
    each = (time.process_time() - began) / count
    print(f"decode: {1 / each:.0f} a core and second, of {len(content) / 1000:.0f} kB each")
    for classes in (10, 1000):
        logs = torch.randn(4096, classes).log_softmax(-1).tolist()
        began = time.process_time()
        with tempfile.TemporaryDirectory() as name:
            part = Path(name, "part.parquet")
            with open_table(part, [str(each) for each in range(classes)]) as write:
                for number, row in enumerate(logs):
                    write({"path": f"s3://bucket/images/{number:09d}.jpg", "label": ""}, row)
            size = part.stat().st_size
        each = (time.process_time() - began) / 4096
        rate, share = f"{1 / each:.0f} a core and second", f"{size / 4096:.0f} bytes each"
        print(f"write, {classes} classes: {rate}, {share}")


def kill_a_node(checkpoint: Path, images: Path, folder: Path) -> None:
    """Of three nodes of a cluster one is killed in the middle; the answers are as without."""
    from ray.cluster_utils import Cluster

    from finetune.cli import main as finetune

    call = ["predict", str(checkpoint), str(images), "--accelerator=cpu", "--part-size=50"]
    assert finetune([*call, f"--output={folder}/whole/"]) == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    output = folder / "survived"

    def kill() -> None:
        while len(list(output.glob("part-*.parquet"))) < 5:
            time.sleep(0.1)
        cluster.remove_node(nodes[0], allow_graceful=False)
        print(f"killed a node after {len(list(output.glob('part-*.parquet')))} parts", flush=True)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    on_ray = ["--engine=ray", f"--address={cluster.address}", "--devices=3"]
    assert finetune([*call, f"--output={output}/", *on_ray]) == 0
    thread.join()
    cluster.shutdown()
    whole, survived = (pyarrow.parquet.read_table(folder / n) for n in ("whole", "survived"))
    print(f"{len(whole)} answers, equal bit for bit: {whole.equals(survived)}")


if __name__ == "__main__":
    main()
