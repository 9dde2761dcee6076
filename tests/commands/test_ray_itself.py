"""Ray itself: of three nodes on this machine one is killed in the middle; nothing shows of it."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from finetune.cli import main
from finetune.training.checkpoints import read_checkpoint

ray_of_tests = pytest.importorskip(
    "ray.cluster_utils", reason="needs the package ray of the extra ray"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Ray has clusters of a machine on Linux"),
    # Ray's own: pipes to processes that are killed, and what it will change later.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WriteCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Any, list[Any]]]:
    """A head that does no work, and two nodes of one core each: to start them takes the longest."""
    with pytest.MonkeyPatch.context() as environment:
        for variable in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS"):
            environment.setenv(variable, "0")
        environment.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        environment.setenv("OMP_NUM_THREADS", "1")
        with in_time():
            found = ray_of_tests.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        yield found, []
        found.shutdown()


@pytest.fixture
def cluster(started: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
    """The same with two nodes, whichever has been killed before."""
    found, nodes = started
    while len(nodes) < 2:
        with in_time():
            nodes.append(found.add_node(num_cpus=1))
    return started


@contextmanager
def in_time() -> Iterator[None]:
    """Ray gives a node 30 s, of which the five processes of a head take five of a core."""
    try:
        yield
    except Exception as error:
        pytest.skip(f"Ray's nodes did not start within their own 30 s on a busy machine: {error}")


class Killer(threading.Thread):
    """Kills a node as soon as it is time; ``in_time`` if that was before the work had ended."""

    def __init__(self, cluster: tuple[Any, list[Any]], is_time: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.cluster, self.is_time = cluster, is_time
        self.ended = threading.Event()
        self.in_time = False
        self.start()

    def run(self) -> None:
        while not self.is_time() and not self.ended.wait(0.05):
            pass
        self.in_time = not self.ended.is_set()
        self.cluster[0].remove_node(self.cluster[1].pop(0), allow_graceful=False)

    def check(self) -> None:
        self.ended.set()
        self.join()
        assert self.in_time


def test_a_node_is_killed_in_the_middle_of_predict(
    cluster: tuple[Any, list[Any]], write_probe: WriteCheckpoint, colour_folder: Path
) -> None:
    call = ["predict", str(write_probe("ray")), str(colour_folder), "--accelerator=cpu"]
    call += ["--part-size=2"]
    assert main([*call, "--output=whole/"]) == 0
    killed = Killer(cluster, lambda: len(list(Path("ray").glob("part-*"))) >= 2)
    on_ray = ["--engine=ray", f"--address={cluster[0].address}", "--devices=2"]
    assert main([*call, "--output=ray/", *on_ray]) == 0
    killed.check()
    whole, survived = map(pyarrow.parquet.read_table, ("whole", "ray"))
    assert survived.equals(whole)


def test_a_node_is_killed_in_the_middle_of_a_group_of_fits(
    cluster: tuple[Any, list[Any]], colour_folder: Path
) -> None:
    call = ["fit", f"--data.root={colour_folder}", "--model.backbone=test_resnet", "--seeds=2"]
    call += ["--model.pretrained=false", "--model.strategy=all", "--trainer.max_epochs=5"]
    call += ["--trainer.accelerator=cpu", "--data.cache=off"]
    assert main([*call, "--name=here"]) == 0
    written = "ray-1/*/checkpoints/last.ckpt"
    killed = Killer(cluster, lambda: len(list(Path("runs").glob(written))) == 2)
    on_ray = ["--engine=ray", f"--address={cluster[0].address}"]
    assert main([*call, "--name=ray", *on_ray]) == 0
    killed.check()
    for seed in range(2):
        best = f"-1/seed-{seed}-*/checkpoints/best.ckpt"
        runs = [next(Path("runs").glob(name + best)).parents[1] for name in ("here", "ray")]
        here, there = (read_checkpoint(run / "checkpoints/best.ckpt").state_dict for run in runs)
        assert all(torch.equal(value, there[key]) for key, value in here.items())
        one, other = (json.loads((run / "metrics.json").read_text()) for run in runs)
        assert one["val"] == other["val"]
        assert other["fit"]["finished"]
