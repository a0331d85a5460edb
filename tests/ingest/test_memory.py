"""What is freed is kept: by the process, for the next batch."""

import subprocess
import sys

import pytest

_PROGRAM = """
from pipelines.ingest.memory import keep_freed_memory
assert keep_freed_memory()
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


@pytest.mark.skipif(sys.platform != "linux", reason="only the C library of GNU can be asked to")
def test_a_batch_needs_no_new_pages() -> None:
    """Arrow's large arrays stand where those of the batches before stood; the system may take pages now and then."""
    told = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True).stdout.split()
    assert told[0] == "system"
    assert int(told[1]) < _PAGES / 100
