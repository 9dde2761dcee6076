"""Freed memory is kept: counted by the page faults that the kernel reports, in a new process."""

import os
import platform
import subprocess
import sys

import pytest

PAGES = 40 * 2**20 // 4096  # of a tensor above the 32 MB that glibc keeps by itself at most
SCRIPT = """
import resource, sys
import torch
from finetune.commands.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
else:
    print(None)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):  # until there are holes of the right size
    torch.ones(10 * 2**20)  # float32: 40 MB
before = faults()
for _ in range(20):
    torch.ones(10 * 2**20)
print(faults() - before)
"""

on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back each time"
)


def run(*arguments: str, **environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**clean, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


@on_glibc
def test_a_tensor_takes_the_memory_of_the_one_before_it() -> None:
    kept, faults = run("keep")
    assert kept == "True"
    assert int(faults) < PAGES


@on_glibc
def test_what_the_user_has_set_stays() -> None:
    kept, faults = run("keep", MALLOC_MMAP_THRESHOLD_="131072")
    assert kept == "False"
    assert int(faults) > 15 * PAGES  # as glibc does it by itself
