"""The formats of everything that karmalake stores, each with a number, and the only check of a number that was found.

A number rises when code of the earlier number would misread or damage what is stored: a new column, another meaning.
What each number means is in docs/versions.md, which a test compares with `FORMATS`. Where a number is stored belongs to
the module that owns the data.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pipelines.errors import NewerFormatError

OtherNumber = Literal["upgraded", "rebuilt", "ignored"]
"""What happens to data of an older number. Data of a newer number is refused, except caches and hints."""


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of stored data and its current number."""

    name: str
    number: int
    older: OtherNumber
    remedy: str = ""
    """What else to do about a newer number than to install a newer release."""

    def require_known(self, found: int, where: str, writer: str | None = None) -> None:
        """Raise NewerFormatError if data at `where` has a newer number; `writer` is the release that wrote it."""
        if found > self.number:
            raise NewerFormatError(
                f"{where} has format {found} of the {self.name}, written by "
                f"{f'karmalake {writer}' if writer else 'a newer release'}; this is karmalake {release()}, which knows "
                f"formats up to {self.number}, so nothing was changed: install that release or a newer "
                f"one{self.remedy}"
            )


LAKE = Format(
    "lake",
    5,
    "upgraded",
    ", or return to a copy of the lake from before the upgrade; to start over, set data_dir to a new folder, copy "
    "tombstones.txt, if it exists, from the old one (it keeps erased users out), and drain the topic from its start",
)
TOMBSTONES = Format("tombstones", 1, "upgraded")
DOCUMENTS = Format(
    "documents", 1, "rebuilt", "; to serve documents of this release instead, delete that key and publish again"
)
WAREHOUSE = Format("warehouse", 5, "rebuilt", ", or rebuild it with `karmalake rebuild`")
INDEX = Format("dedup index", 4, "rebuilt")
HISTORIES = Format("histories", 3, "rebuilt")
DIGESTS = Format("digest cache", 1, "rebuilt")
FEED_STATE = Format("feed state", 2, "rebuilt")
LAG = Format("lag history", 1, "ignored")
HALTED = Format("halted partitions", 1, "ignored")
FORMATS = (LAKE, TOMBSTONES, DOCUMENTS, WAREHOUSE, INDEX, HISTORIES, DIGESTS, FEED_STATE, LAG, HALTED)


@cache
def release() -> str:
    """Return the version of the installed karmalake."""
    try:
        return version("karmalake")
    except PackageNotFoundError:
        return "unknown"
