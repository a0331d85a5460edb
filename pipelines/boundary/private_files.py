"""Folders and files that no other user of the machine can read: the lake holds who did what, the index its key.

The data folder is the one switch: it is made for this user alone, so nothing beneath it can be reached, and what a
command writes is as private as it is. To share it, open the folder itself, such as to a group with `chmod 750`.
"""

import os
import stat
from pathlib import Path

_OTHERS = 0o077


def private_folder(folder: Path) -> None:
    """Make a folder, with its parents where they are missing, for this user alone; one that is there stays as it is."""
    if folder.is_dir():
        return
    private_folder(folder.absolute().parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def write_as_privately_as(folder: Path) -> None:
    """Let this process write files that no other user can read, unless others may enter `folder` already.

    For commands, before they write: libraries write by the same rule. It never opens what was closed.
    """
    before = os.umask(_OTHERS)
    os.umask(before | (_OTHERS & ~_open_to_others(folder)))


def is_private(folder: Path) -> bool:
    """Return whether no other user can enter a folder."""
    return not _open_to_others(folder)


def _open_to_others(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode) & _OTHERS if folder.is_dir() else 0
