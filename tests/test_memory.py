"""Memory of a long-lived process."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from rustunnel_py import memory

FREED = """
import resource, sys
from rustunnel_py import memory
if sys.argv[1] == "told":
    memory.give_large_blocks_back()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

for _ in range(3):  # what is freed teaches malloc
    bytes(8 << 20)
before = resident()
kept = []
for _ in range(200):  # 200 blocks of 200 KiB, each with a small one behind it that stays
    large = b"x" * (200 << 10)
    kept.append((large, b"y" * 3000))
kept = [small for _, small in kept]
del large
print((resident() - before) >> 20)
"""


def test_what_start_up_made_is_left_out_of_collections() -> None:
    gc.collect()
    try:
        memory.spare_start_up()
        assert gc.get_freeze_count() > 10_000  # the modules of this process
        assert len(gc.get_objects()) < 1000
    finally:
        gc.unfreeze()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_large_blocks_go_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", FREED, "told"], capture_output=True, text=True, check=True, timeout=60)
    assert int(run.stdout) <= 4  # MiB of 40
