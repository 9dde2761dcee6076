"""Ray's part of the work, with a stand-in for Ray: what is handed to it, and what comes back.

``test_ray_itself.py`` runs Ray, where it is installed and its nodes start in time.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from finetune import extras
from finetune.cli import main

WriteCheckpoint = Callable[..., Path]
InstallRay = Callable[..., None]


class Dataset:
    """Gives each row to an actor of its own turn, in no order, and the first one twice."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def map_batches(self, actor: type, **options: Any) -> "Dataset":
        assert options["batch_size"] == 1
        built = [actor(**options["fn_constructor_kwargs"]) for _ in range(options["compute"])]
        Ray.actors = [*built]
        Ray.of_each = {name: options[name] for name in ("num_cpus", "num_gpus") if name in options}
        self.given = [*reversed(self.rows), self.rows[0]]  # as after a node has gone
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for turn, row in enumerate(self.given):
            actor = Ray.actors[turn % len(Ray.actors)]
            answer = actor({name: [value] for name, value in row.items()})
            yield {name: value[0] for name, value in answer.items()}


class Ray:
    """What of Ray is called."""

    actors: list[Any] = []  # noqa: RUF012
    of_each: dict[str, float] = {}  # noqa: RUF012
    resources: dict[str, float] = {"CPU": 8.0}  # noqa: RUF012
    addresses: list[str] = []  # noqa: RUF012
    too_slow = 0  # how often a node does not start in time


@pytest.fixture(autouse=True)
def stand_in(install_ray: InstallRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        if options["address"] == "nowhere:1":
            raise ConnectionError("Failed to connect")
        if Ray.too_slow:
            Ray.too_slow -= 1
            raise RuntimeError("The current node timed out during startup.")
        Ray.addresses.append(options["address"])

    functions = {
        "init": init,
        "shutdown": lambda: None,
        "nodes": lambda: [{"Alive": True, "Resources": Ray.resources}],
        "put": lambda value: value,
        "get": lambda value: value,
    }
    install_ray(
        functions,
        from_items=lambda rows, **_: Dataset(rows),
        ActorPoolStrategy=lambda *, size: size,
    )
    monkeypatch.setattr(Ray, "resources", {"CPU": 8.0})


@pytest.fixture
def call(write_probe: WriteCheckpoint, colour_folder: Path) -> list[str]:
    images = str(colour_folder)
    return ["predict", str(write_probe("ray")), images, "--accelerator=cpu", "--part-size=5"]


def test_the_answers_are_those_of_one_process(call: list[str]) -> None:
    assert main([*call, "--output=here/"]) == 0
    assert main([*call, "--output=there/", "--engine=ray", "--devices=2"]) == 0
    assert len(Ray.actors) == 2
    assert Ray.of_each == {"num_cpus": 4.0}
    here, there = (
        {p.name: p.read_bytes() for p in Path(n).glob("part*")} for n in ("here", "there")
    )
    assert here == there
    assert pyarrow.parquet.read_table("there").equals(pyarrow.parquet.read_table("here"))


def test_ray_goes_on_with_what_is_missing(call: list[str], capsys) -> None:
    on_ray = [*call, "--output=there/", "--engine=ray", "--address=cluster:6379"]
    assert main(on_ray) == 0
    for part in sorted(Path("there").glob("part-*"))[2:4]:
        part.unlink()
    capsys.readouterr()
    assert main(on_ray) == 0
    assert "36 images answered in there/, 10 of them now" in capsys.readouterr().out
    Ray.addresses.clear()
    assert main(on_ray) == 0  # nothing is missing: Ray is not asked
    assert not Ray.addresses


def test_what_an_actor_cannot_read_is_one_line(call: list[str], capsys) -> None:
    Path("bad").mkdir()
    Path("bad/a.png").write_text("no image")
    bad = [*call[:2], "bad", *call[3:], "--output=there/", "--engine=ray"]
    assert main(bad) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.png" in line


@pytest.mark.parametrize(
    ("resources", "devices", "actors", "of_each"),
    [
        ([{"CPU": 16.0}], "auto", 4, {"num_cpus": 4.0}),
        ([{"CPU": 7.0}], "auto", 1, {"num_cpus": 7.0}),
        ([{"CPU": 1.0}], "2", 2, {"num_cpus": 0.5}),
        ([{"CPU": 16.0, "GPU": 2.0}], "auto", 2, {"num_cpus": 8.0, "num_gpus": 1.0}),
        ([{"CPU": 16.0, "GPU": 2.0}], "4", 4, {"num_cpus": 4.0, "num_gpus": 0.5}),
        ([{"CPU": 16.0, "GPU": 2.0}], "1", 1, {"num_cpus": 16.0, "num_gpus": 1.0}),
        ([{}, {"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], "auto", 3, {"num_cpus": 1.0}),
        ([{"CPU": 2.0}, {"CPU": 2.0}], "1", 1, {"num_cpus": 2.0}),
        ([{"CPU": 6.0}, {"CPU": 6.0}], "auto", 2, {"num_cpus": 6.0}),
        ([{"CPU": 16.0}, {"CPU": 2.0}], "auto", 5, {"num_cpus": 3.0}),
    ],
)
def test_actors_share_what_the_nodes_have(
    resources: list[dict[str, float]], devices: str, actors: int, of_each: dict[str, float]
) -> None:
    from finetune.prediction.on_ray import shares

    nodes = [{"Alive": True, "Resources": each} for each in resources]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    on_cpu = not any("GPU" in each for each in resources)
    assert shares(devices, nodes, blocks=100, on_cpu=on_cpu) == (actors, of_each)
    assert shares(devices, nodes, blocks=1, on_cpu=True)[0] == 1


def test_wrong_calls_are_one_line(call: list[str], capsys) -> None:
    on_ray = [*call, "--output=there/", "--engine=ray"]
    assert main([*on_ray, "--address=nowhere:1"]) == 2
    assert main([*on_ray, "--devices=0,1"]) == 2
    assert main([*call[:-1], "--engine=ray"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "a Ray cluster at nowhere:1, found none" in lines[0]
    assert "a number of actors" in lines[1]
    assert "--output DIR/ beside --engine ray" in lines[2]


def test_a_node_that_starts_too_slowly_is_started_again(call: list[str], capsys) -> None:
    Ray.too_slow = 2
    assert main([*call, "--output=there/", "--engine=ray"]) == 0
    Ray.too_slow = 3
    assert main([*call, "--output=never/", "--engine=ray"]) == 2
    assert "timed out during startup" in capsys.readouterr().err


def test_without_the_extra_it_says_how_to_get_it(
    call: list[str], capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = extras._is_there
    monkeypatch.setattr(extras, "_is_there", lambda name: name != "ray" and is_there(name))
    assert main([*call, "--output=there/", "--engine=ray"]) == 1
    assert extras.remedy("ray") in capsys.readouterr().err
    assert not Path("there").exists()
