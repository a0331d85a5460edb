"""A forked child, as of multiprocessing in a notebook, has none of its parent's threads: it starts its own."""

import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.lake.files import make_durable
from pipelines.reputation.chunks import store_chunks


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


@pytest.mark.parametrize("work", [_read_many_chunks, _flush_many_files])
def test_a_forked_child_works_on_threads_of_its_own(work: Callable[[Path], None], tmp_path: Path) -> None:
    """What has run in the parent ends in its child too."""
    for _ in range(5):
        work(tmp_path)
    child = multiprocessing.get_context("fork").Process(target=work, args=(tmp_path,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent has threads: that is what is tested
        child.start()
    child.join(30)
    ended = child.exitcode
    child.kill()
    assert ended == 0
