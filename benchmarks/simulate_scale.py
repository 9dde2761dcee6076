"""The plan for 10^8 images as a queue of blocks, with service times that were measured.

    python benchmarks/simulate_scale.py
    python benchmarks/simulate_scale.py --images 1e8 --decode 346 --forward 17 --store-mb 20

A discrete-event simulation of one machine of C cores, or of several: actors of four cores take
blocks in order, each a stream from the store over a network that all share; then it is decoded,
answered (by the cores, or by a GPU that all share) and written. The next block is fetched while one
is answered. Service times vary by a gamma distribution around their mean. What saturates first is
what is busy all the time; beside the simulated time stands the plan's, which knows of no queues.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

import numpy as np

IMAGES_A_BLOCK = 4096
CORES_AN_ACTOR = 4
PARTS = ("network", "streams", "cores", "gpu")
VARIATION = 0.2  # of a block's service time, as a share of its mean


@dataclass(frozen=True)
class Machine:
    """Its cores, its network, and images a second of one GPU (0: none)."""

    name: str
    cores: int
    network_mb: float  # a second, 1e6 bytes, all of it
    gpu: float = 0.0


@dataclass(frozen=True)
class Rates:
    """Of one core, in images a second, and the bytes of an image."""

    decode: float
    forward: float
    write: float
    image_kb: float
    store_mb: float  # a second, of one stream


def planned(machine: Machine, rates: Rates, images: float) -> dict[str, float]:
    """Hours that each part alone would take."""
    megabytes = images * rates.image_kb / 1000
    seconds = {
        "network": megabytes / machine.network_mb,
        "streams": megabytes / rates.store_mb / actors_of(machine),
        "cores": images / machine.cores * core_seconds(machine, rates),
    }
    if machine.gpu:
        seconds["gpu"] = images / machine.gpu
    return {part: value / 3600 for part, value in seconds.items()}


def actors_of(machine: Machine) -> int:
    """One for every four cores."""
    return max(1, machine.cores // CORES_AN_ACTOR)


def core_seconds(machine: Machine, rates: Rates) -> float:
    """Of one core, an image: decoding, writing, and the network where no GPU is."""
    forward = 0 if machine.gpu else 1 / rates.forward
    return 1 / rates.decode + 1 / rates.write + forward


def simulate(
    machine: Machine, rates: Rates, blocks: int, *, seed: int = 0
) -> tuple[float, dict[str, float]]:
    """Seconds for so many blocks, and which share of them each part was busy.

    The network serves one megabyte after the other, so that streams share it; a stream alone has
    ``store_mb`` a second. A GPU serves one block after the other.
    """
    draw = np.random.default_rng(seed)
    shape = VARIATION**-2

    def around(mean: float) -> float:
        return float(draw.gamma(shape, mean / shape))

    actors, own = actors_of(machine), min(CORES_AN_ACTOR, machine.cores)
    megabytes = IMAGES_A_BLOCK * rates.image_kb / 1000
    network_free = gpu_free = 0.0
    busy = dict.fromkeys(PARTS, 0.0)
    # Of each actor: when it may ask for its next block, and when its cores are free.
    waiting = [(0.0, actor) for actor in range(actors)]
    cores_free = [0.0] * actors
    end = 0.0
    for _ in range(blocks):
        asked, actor = heapq.heappop(waiting)
        served = megabytes / machine.network_mb
        begun = max(asked, network_free)
        network_free = begun + served
        busy["network"] += served
        fetched = max(network_free, asked + around(megabytes / rates.store_mb))
        busy["streams"] += (fetched - asked) / actors
        started = max(fetched, cores_free[actor])
        work = around(IMAGES_A_BLOCK * core_seconds(machine, rates) / own)
        done = started + work
        busy["cores"] += work / actors
        cores_free[actor] = done
        if machine.gpu:
            service = IMAGES_A_BLOCK / machine.gpu
            gpu_free = max(gpu_free, done - work) + service
            busy["gpu"] += service
            done = max(done, gpu_free)
        end = max(end, done)
        heapq.heappush(waiting, (started, actor))  # one block ahead
    return end, {part: value / end for part, value in busy.items() if value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=float, default=1e8)
    parser.add_argument("--decode", type=float, default=346.0)
    parser.add_argument("--forward", type=float, default=17.0)
    parser.add_argument("--write", type=float, default=105_000.0)
    parser.add_argument("--image-kb", type=float, default=56.0)
    parser.add_argument("--store-mb", type=float, default=90.0, help="of one stream; not measured")
    parser.add_argument("--gpu", type=float, nargs="*", default=[1000.0, 4000.0, 12_000.0])
    given = parser.parse_args()
    rates = Rates(given.decode, given.forward, given.write, given.image_kb, given.store_mb)
    machines = [
        Machine("16 cores", 16, 1500),
        Machine("64 machines of 16 cores", 1024, 64 * 1500),
        *(
            Machine(f"16 cores, a GPU of {rate:,.0f} a second", 16, 1500, rate)
            for rate in given.gpu
        ),
    ]
    print("| machine | hours planned | simulated | busy: network | streams | cores | GPU | first |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    blocks = round(given.images / IMAGES_A_BLOCK)
    for machine in machines:
        plan = planned(machine, rates, given.images)
        seconds, busy = simulate(machine, rates, blocks)
        shares = " | ".join(f"{busy.get(part, 0):.2f}" for part in PARTS)
        first = max(busy, key=lambda part: busy[part])
        print(
            f"| {machine.name} | {max(plan.values()):.1f} | {seconds / 3600:.1f} | {shares} "
            f"| {first} |"
        )


if __name__ == "__main__":
    main()
