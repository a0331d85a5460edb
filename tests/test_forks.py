"""A forked child, as of multiprocessing in a notebook, has none of its parent's threads: it starts its own."""

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.lake.files import make_durable
from pipelines.reputation.chunks import store_chunks
from tests.services.waiting import PATIENCE_SECONDS


def _read_many_chunks(_folder: Path) -> None:
    """Take a row of each of more chunks than one thread reads."""
    table = pa.table({"n": range(200)})
    rows = store_chunks(None, table.schema, table.to_batches(1))
    assert rows.take(np.arange(200)).equals(table)


def _flush_many_files(folder: Path) -> None:
    """Flush more files than threads."""
    files = [folder / f"{n}" for n in range(20)]
    for file in files:
        file.touch()
    make_durable([str(file) for file in files])


def _work_and_fork(work: Callable[[Path], None], folder: Path) -> None:
    for _ in range(50):  # until its pool has all its threads
        work(folder)
    child = multiprocessing.get_context("fork").Process(target=work, args=(folder,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads: that is what is tested
        child.start()
    child.join(PATIENCE_SECONDS)
    ended = child.exitcode
    child.kill()
    sys.exit(ended if ended is not None else "the forked child did not end")


@pytest.mark.parametrize("work", [_read_many_chunks, _flush_many_files])
def test_a_forked_child_works_on_threads_of_its_own(work: Callable[[Path], None], tmp_path: Path) -> None:
    """What has run in the parent ends in its child too.

    The parent is a new process: the threads of other tests may hold a lock when this one forks.
    """
    parent = multiprocessing.get_context("spawn").Process(target=_work_and_fork, args=(work, tmp_path))
    parent.start()
    parent.join()
    assert parent.exitcode == 0
