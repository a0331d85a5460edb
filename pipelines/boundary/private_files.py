"""Folders and files that no other user of the machine can read: the lake holds user activity, the index its key.

The permissions of the data folder decide: it is created with mode 0700, so nothing beneath it is accessible to others,
and commands write folders and files that are as private as the folder. A folder closed to others can be shared with a
group, such as by `chmod 2750`.
"""

import grp
import os
import pwd
import re
import stat
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from pipelines.errors import PERMISSION, KarmalakeError, exit_status_of, is_network_error, one_line

_GROUP_AND_OTHERS = 0o077
_OTHERS = 0o007
_PATH = re.compile(r"""["'](/[^"']*)["']|\s(/\S+)""")


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


def foreign_owner(folder: Path) -> str | None:
    """Return the owner of a folder that this process, run by root, would leave files in; None if it is none or root.

    They would belong to root, so that the owner can neither read nor replace them.
    """
    if os.geteuid() != 0 or not folder.is_dir():
        return None
    owner = folder.stat().st_uid
    return _user(owner) if owner else None


def is_private(folder: Path) -> bool:
    """Return whether a folder is inaccessible to other users."""
    return not _permissions_of_others(folder)


def _permissions_of_others(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode) & _GROUP_AND_OTHERS if folder.is_dir() else 0


def explain_denial(path: Path) -> str:
    """Return what keeps this process from a path: the folder or file, whose it is, its mode, and what to do."""
    try:
        place, wanted = _denied(path.absolute())
        status, read_only = place.stat(), os.statvfs(place).f_flag & os.ST_RDONLY
    except OSError:  # it changed meanwhile
        return "change its permissions, or run as another user"
    if read_only and wanted == "write to":
        return f"{place} is on a read-only file system: mount it writable, or use another folder"
    uid, owner, me = os.geteuid(), _user(status.st_uid), _user(os.geteuid())
    remedies = {uid: "change its mode", 0: f"`chown -R {uid} {place}` as root, or change its group or mode"}
    return (
        f"{me} may not {wanted} {place}, which has mode {stat.S_IMODE(status.st_mode):04o} and belongs to {owner} and "
        f"group {_group(status.st_gid)}: {remedies.get(status.st_uid, f'run as {owner}, or change its group or mode')}"
    )


def message_of(error: BaseException) -> str:
    """Return the message of an error: one of a file with its path, and with what keeps this process out.

    Libraries name the path only in their text. A message of ours stays as it is.
    """
    if isinstance(error, KarmalakeError):
        return str(error)
    text = one_line(error)
    found = _PATH.search(text)
    path = Path(found[1] or found[2]) if found else None
    if isinstance(error, OSError) and not is_network_error(error):  # a full disk or a missing permission
        named = isinstance(error.filename, str | bytes)
        path = Path(os.fsdecode(error.filename)) if named else path
        if named or path is None:
            text = f"{path or 'writing'}: {error.strerror or text}"
    return f"{text}; {explain_denial(path)}" if path and exit_status_of(error) == PERMISSION else text


def _denied(path: Path) -> tuple[Path, str]:
    """Return the first folder on the way to a path, or itself, that this process may not use, and for what."""
    for folder, inner in pairwise([*reversed(path.parents), path]):
        if not os.access(folder, os.X_OK, effective_ids=True):
            return folder, "enter"
        if not os.path.lexists(inner):
            return folder, "write to"
    if not os.access(path, os.R_OK, effective_ids=True):
        return path, "read"
    return (path.parent if os.access(path, os.W_OK, effective_ids=True) and not path.is_dir() else path), "write to"


def _user(uid: int) -> str:
    with suppress(KeyError):  # one without a name, as in a container
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    return f"uid {uid}"


def _group(gid: int) -> str:
    with suppress(KeyError):
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    return str(gid)
