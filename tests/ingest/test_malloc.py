"""The process keeps freed memory for the next batch, and says which allocator is better."""

import os
import subprocess
import sys
from ctypes.util import find_library

import pytest

_PROGRAM = """
from pipelines.ingest.malloc import tune_malloc
assert tune_malloc()
import resource
import numpy
import pyarrow

def faults_of_a_batch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        numpy.frombuffer(pyarrow.allocate_buffer(40 << 20), numpy.uint8)[:] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_a_batch(), faults_of_a_batch()
print(pyarrow.default_memory_pool().backend_name, min(faults_of_a_batch() for _ in range(5)))
"""
_PAGES = 5 * (40 << 20) // 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="requires glibc")
def test_a_batch_needs_no_new_pages() -> None:
    """Arrow's large arrays reuse the pages of previous batches, up to a few that the system reclaims."""
    output = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout.split()
    assert output[0] == "system"
    assert int(output[1]) < _PAGES / 100


@pytest.mark.skipif(sys.platform != "linux", reason="requires glibc")
def test_the_better_allocator() -> None:
    """Where glibc's allocates, the advice can be followed as it is written, and then is not given again."""
    advice = _advice({"LD_PRELOAD": ""})
    assert "libjemalloc2" in advice
    preload = advice.split()[-1]
    assert preload.startswith("LD_PRELOAD=")
    if find_library("jemalloc") is None:
        pytest.skip("libjemalloc2 is not installed")
    assert _advice(dict([preload.split("=")])) == "None"


def _advice(variables: dict[str, str]) -> str:
    program = "from pipelines.ingest.malloc import explain_malloc; print(explain_malloc())"
    command, environment = [sys.executable, "-c", program], os.environ | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
