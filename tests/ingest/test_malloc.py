"""The process keeps freed memory for the next batch."""

import subprocess
import sys

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
