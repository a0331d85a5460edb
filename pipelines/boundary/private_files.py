"""Folders and files that no other user of the machine can read: the lake holds user activity, the index its key.

The permissions of the data folder decide: it is created with mode 0700, so nothing beneath it is accessible to others,
and commands write folders and files that are as private as the folder. A folder closed to others can be shared with a
group, such as by `chmod 2750`.
"""

import os
import stat
from pathlib import Path

_GROUP_AND_OTHERS = 0o077
_OTHERS = 0o007


def make_private_dir(folder: Path) -> None:
    """Create a folder and its missing parents with mode 0700; leave an existing folder unchanged."""
    if folder.is_dir():
        return
    make_private_dir(folder.absolute().parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def make_inner_dir(folder: Path) -> None:
    """Create a folder within another one, which shares it with its group if it is closed to others.

    A missing parent is created private, with its parents. An existing folder is left unchanged.
    """
    if folder.is_dir():
        return
    parent = folder.absolute().parent
    make_private_dir(parent)
    shared = _permissions_of_others(parent)
    folder.mkdir(mode=0o700 | (0 if shared & _OTHERS else shared), exist_ok=True)


def restrict_umask(folder: Path) -> None:
    """Restrict the umask of this process to the permissions of `folder`, so that new files are as private as it is.

    For commands, before they write: files that libraries create follow it too. It never relaxes the umask.
    """
    before = os.umask(_GROUP_AND_OTHERS)
    os.umask(before | (_GROUP_AND_OTHERS & ~_permissions_of_others(folder)))


def is_private(folder: Path) -> bool:
    """Return whether a folder is inaccessible to other users."""
    return not _permissions_of_others(folder)


def _permissions_of_others(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode) & _GROUP_AND_OTHERS if folder.is_dir() else 0
