"""What the allocator does with memory that was freed."""

import subprocess
import sys

import pytest

BLOCKS = """
import ctypes, resource
from recon.trainer.training.memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    libc.memset(block, 1, 2**26)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = [faults() for _ in range(2)]
keep_freed_memory()
kept = [faults() for _ in range(3)]
print(min(given_back) > 5000 and kept[0] > 5000 and max(kept[1:]) < 100 or (given_back, kept))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_blocks_are_cleared_by_the_system_once() -> None:
    told = subprocess.run([sys.executable, "-c", BLOCKS], check=True, capture_output=True, text=True)
    assert told.stdout == "True\n"
