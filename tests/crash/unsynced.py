"""What a disk may hold after a power cut: what was flushed for sure, and any part of what was not.

Follows every ``fsync`` of this process. The contents of a file are safe once the file was flushed, a name is safe once
its directory was. Everything else may be there or not, in any combination (a seeded choice; seed 0 loses all of it).
SQLite flushes by itself and is trusted to: its files are taken as they are.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

DATABASE = ("state.db", "state.db-wal", "state.db-shm")


class Content(NamedTuple):
    """A regular file as it was flushed."""

    data: bytes
    mode: int


class Names(NamedTuple):
    """A directory as it was flushed: inode by name."""

    entries: dict[str, int]
    mode: int


class UnsyncedModel:
    """Watches ``root``; what lies there when this is made counts as flushed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._contents: dict[int, Content] = {}
        self._names: dict[int, Names] = {}
        # An inode that somebody holds open is not given to another file.
        self._held: dict[int, int] = {}
        for place in [root, *root.rglob("*")]:
            self._flush(place)
        self._real_fsync = os.fsync
        os.fsync = self._fsync  # type: ignore[assignment]  # every flush of this process passes here now

    def _fsync(self, handle: object) -> None:
        self._real_fsync(handle)  # type: ignore[arg-type]  # os.fsync takes whatever we were given
        number = handle if isinstance(handle, int) else handle.fileno()  # type: ignore[attr-defined]
        path = Path(f"/proc/self/fd/{number}").readlink()
        if path == self._root or path.is_relative_to(self._root):
            self._flush(path)

    def _flush(self, path: Path) -> None:
        facts = path.lstat()
        self._hold(path, facts.st_ino)
        if stat.S_ISDIR(facts.st_mode):
            self._names[facts.st_ino] = self._names_now(path)
        elif stat.S_ISREG(facts.st_mode) and path.name not in DATABASE:
            self._contents[facts.st_ino] = self._content_now(path)

    def _hold(self, path: Path, inode: int) -> None:
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def _names_now(self, directory: Path) -> Names:
        entries: dict[str, int] = {}
        for path in directory.iterdir():
            entries[path.name] = path.lstat().st_ino
            self._hold(path, path.lstat().st_ino)
        return Names(entries, stat.S_IMODE(directory.stat().st_mode))

    def _content_now(self, path: Path) -> Content:
        return Content(path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def leave(self, target: Path, seed: int) -> None:
        """Write to ``target`` what the disk may hold now."""
        chance = random.Random(seed)
        contents, names = dict(self._contents), dict(self._names)
        if seed:
            for place in [self._root, *self._root.rglob("*")]:
                self._perhaps(place, chance, contents, names)
        self._write_directory(self._root.stat().st_ino, target, contents, names, {})
        for name in DATABASE:
            if (self._root / name).exists():
                shutil.copy(self._root / name, target / name)

    def _perhaps(
        self, place: Path, chance: random.Random, contents: dict[int, Content], names: dict[int, Names]
    ) -> None:
        facts = place.lstat()
        if stat.S_ISDIR(facts.st_mode):
            before = names.get(facts.st_ino, Names({}, stat.S_IMODE(facts.st_mode)))
            now = self._names_now(place)
            merged = dict(before.entries)
            for name in sorted(before.entries.keys() | now.entries.keys()):
                if before.entries.get(name) != now.entries.get(name) and chance.random() < 0.5:
                    merged.pop(name, None)
                    if name in now.entries:
                        merged[name] = now.entries[name]
            names[facts.st_ino] = Names(merged, now.mode if chance.random() < 0.5 else before.mode)
        elif stat.S_ISREG(facts.st_mode) and place.name not in DATABASE:
            contents[facts.st_ino] = self._some_of(contents.get(facts.st_ino), self._content_now(place), chance)

    @staticmethod
    def _some_of(before: Content | None, now: Content, chance: random.Random) -> Content:
        """Pages of both, in any order, in a file of either size."""
        if before == now:
            return now
        old = before.data if before is not None else b""
        size = chance.choice((len(old), len(now.data)))
        pages = []
        for start in range(0, size, 4096):
            source = now.data if chance.random() < 0.5 else old
            pages.append(source[start : start + 4096].ljust(min(4096, size - start), b"\0"))
        return Content(b"".join(pages)[:size], now.mode)

    def _write_directory(
        self,
        inode: int,
        target: Path,
        contents: dict[int, Content],
        names: dict[int, Names],
        written: dict[int, Path],
    ) -> None:
        target.mkdir()
        known = names.get(inode, Names({}, 0o700))
        for name, child in known.entries.items():
            if name in DATABASE or child not in self._held:
                continue
            mode = os.fstat(self._held[child]).st_mode
            if stat.S_ISDIR(mode):
                self._write_directory(child, target / name, contents, names, written)
            elif child in written:
                (target / name).hardlink_to(written[child])
            elif stat.S_ISREG(mode):
                content = contents.get(child, Content(b"", 0o600))
                (target / name).write_bytes(content.data)
                (target / name).chmod(content.mode)
                written[child] = target / name
        target.chmod(known.mode)
