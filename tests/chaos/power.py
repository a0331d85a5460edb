"""A simulated power cut: what was not flushed may survive, in full, in part or not at all.

Child processes record each fsync before it is made (`recording_flushes`): of a file, its content is on the disk; of
a folder, its current names are. `Disk.cut` then decides everything else at random, as a file system may: a name that
was not flushed is gone, or the previous file of that name is back; a file that was not flushed is empty, torn, full of
zeros, or whole. A deletion that was not flushed may be undone.
"""

import json
import os
import random
import stat
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_JOURNAL = "journal"
_TEARS: tuple[Callable[[bytes], bytes], ...] = (
    lambda content: content,
    lambda _: b"",
    lambda content: bytes(len(content)),
    lambda content: content[: len(content) // 2],
)


@dataclass(frozen=True, slots=True)
class Disk:
    """The folders `roots` on a disk; `shadow` has hard links to every file that may come back."""

    shadow: Path
    roots: Sequence[Path]

    def record_all(self) -> None:
        """Record everything as flushed."""
        self.shadow.mkdir(parents=True, exist_ok=True)
        for root in self.roots:
            for folder, _, files in os.walk(root):
                self._record_folder(folder)
                for name in files:
                    self._record_file(Path(folder, name).stat(), f"{folder}/{name}")

    def record(self, descriptor: int) -> None:
        """Record the file or folder of a descriptor as flushed."""
        path, found = Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor)
        if not any(path.is_relative_to(root) for root in self.roots):
            return
        if stat.S_ISDIR(found.st_mode):
            self._record_folder(str(path))
        else:
            self._record_file(found, str(path))

    def cut(self, rng: random.Random) -> Counter[str]:
        """Cut the power after all writers ended; return the number of unflushed entries by what became of them."""
        flushed, folders = self._read()
        fates: Counter[str] = Counter()
        for root in filter(Path.exists, self.roots):
            _Loss(self.shadow, flushed, folders, rng, fates).apply(root)
        return fates

    def _record_file(self, found: os.stat_result, path: str) -> None:
        self._keep(path)
        self._write(["file", found.st_ino])

    def _record_folder(self, folder: str) -> None:
        names = {
            entry.name: entry.inode() if entry.is_dir() else self._keep(entry.path) for entry in os.scandir(folder)
        }
        self._write(["folder", folder, {name: inode for name, inode in names.items() if inode is not None}])

    def _keep(self, path: str) -> int | None:
        """Link a file into the shadow, so that it can come back and its inode is not reused; None if it is missing."""
        link = self.shadow / f"new-{os.getpid()}-{threading.get_ident()}"
        try:
            os.link(path, link)
        except FileNotFoundError:
            return None
        inode = link.stat().st_ino
        link.rename(self.shadow / str(inode))
        link.unlink(missing_ok=True)  # a rename between two links of one file does nothing
        return inode

    def _write(self, line: list[Any]) -> None:
        """Append a line to the journal in one write."""
        journal = os.open(self.shadow / _JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(journal, json.dumps(line).encode() + b"\n")
        finally:
            os.close(journal)

    def _read(self) -> tuple[set[int], dict[str, dict[str, int]]]:
        """Return the inodes of flushed files, and of each folder the names that it has on the disk."""
        flushed: set[int] = set()
        folders: dict[str, dict[str, int]] = {}
        for line in (self.shadow / _JOURNAL).read_text().splitlines():
            kind, *rest = json.loads(line)
            if kind == "file":
                flushed.update(rest)
            else:
                folder, names = rest
                folders[folder] = names
        return flushed, folders


@dataclass(frozen=True, slots=True)
class _Loss:
    shadow: Path
    flushed: set[int]
    folders: dict[str, dict[str, int]]
    rng: random.Random
    fates: Counter[str] = field(default_factory=Counter[str])

    def apply(self, folder: Path) -> None:
        """Lose unflushed entries of a folder."""
        durable = self.folders.get(str(folder), {})
        entries = {entry.name: entry for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)}
        for name, entry in entries.items():
            if durable.get(name) != entry.inode() and self.rng.random() < 0.5:
                self._forget(Path(entry.path), durable.get(name))
            elif entry.is_dir():
                self.apply(Path(entry.path))
            elif entry.inode() not in self.flushed:
                self._tear(Path(entry.path))
        for name in sorted(durable.keys() - entries.keys()):
            if self.rng.random() < 0.5:
                self._bring_back(folder / name, durable[name])

    def _forget(self, path: Path, before: int | None) -> None:
        """Revert a name to its previous file, if any."""
        self.fates["names lost"] += 1
        if path.is_dir():
            for inner in sorted(path.rglob("*"), reverse=True):
                inner.rmdir() if inner.is_dir() else inner.unlink()
            path.rmdir()
            return
        path.unlink()
        if before is not None:
            self._bring_back(path, before)

    def _bring_back(self, path: Path, inode: int) -> None:
        saved = self.shadow / str(inode)
        if saved.exists():  # folders have no link
            os.link(saved, path)
            self.fates["names brought back"] += 1

    def _tear(self, path: Path) -> None:
        content = path.read_bytes()
        path.unlink()  # its other names are torn separately
        path.write_bytes(self.rng.choice(_TEARS)(content))
        self.fates["files torn or intact"] += 1


def recording_flushes(disk: Disk, task: Callable[..., object], *arguments: Any) -> None:
    """Run a task in this process and record its flushes."""
    real = os.fsync

    def fsync(descriptor: Any) -> None:
        disk.record(descriptor if isinstance(descriptor, int) else descriptor.fileno())
        real(descriptor)

    os.fsync = fsync
    task(*arguments)
