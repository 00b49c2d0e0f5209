"""Durable writes: all of the new or all of the old, our errors only, every effect through one door."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from contract.errors import StoreBroken, StoreFull
from contract.system.durable import Disk, Effects
from tests.crash.unsynced import UnsyncedModel

T = TypeVar("T")


class Recording(Effects):
    """Notes every effect; raises ``failure`` instead of performing those of kind ``fail``."""

    def __init__(self, fail: str | None = None, failure: OSError | None = None) -> None:
        self.seen: list[str] = []
        self._fail = fail
        self._failure = failure

    def perform(self, kind: str, target: str, action: Callable[[], T]) -> T:
        self.seen.append(kind)
        if kind == self._fail and self._failure is not None:
            raise self._failure
        return super().perform(kind, target, action)


def test_every_method_passes_the_one_door(tmp_path: Path) -> None:
    effects = Recording()
    disk = Disk(effects)
    disk.make_directory(tmp_path / "a" / "b")
    disk.write_file(tmp_path / "a" / "file", b"x")
    disk.sync_file(tmp_path / "a" / "file")
    disk.rename(tmp_path / "a" / "file", tmp_path / "a" / "b" / "file")
    disk.allocate(tmp_path / "a" / "part", 10_000)
    disk.remove(tmp_path / "a" / "b")
    assert effects.seen == ["mkdir", "write", "fsync", "rename", "allocate", "remove"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["part"]
    assert (tmp_path / "a" / "part").stat().st_size == 10_000


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    Disk().write_file(target, b"old")

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StoreFull):
        Disk().write_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EROFS, StoreBroken), (errno.EIO, StoreBroken)],
)
def test_operating_system_errors_become_ours(tmp_path: Path, number: int, expected: type[Exception]) -> None:
    disk = Disk(Recording("write", OSError(number, os.strerror(number))))
    with pytest.raises(expected) as caught:
        disk.write_file(tmp_path / "file", b"x")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_sealed_tree_can_be_removed_and_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "file").touch()
    sealed = tmp_path / "sealed"
    (sealed / "inner").mkdir(parents=True)
    (sealed / "inner" / "link").symlink_to(tmp_path / "keep")
    (sealed / "inner").chmod(0o555)
    sealed.chmod(0o555)
    Disk().remove(sealed)
    assert not sealed.exists()
    assert (tmp_path / "keep" / "file").exists()


def test_allocate_keeps_what_is_there(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"abc")
    Disk().allocate(part, 5000)
    assert part.read_bytes()[:3] == b"abc"
    assert part.stat().st_blocks * 512 >= 5000


def test_what_is_written_into_an_allocated_file_is_found_again_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its contents are flushed while it is filled; its name must be there by then."""
    monkeypatch.setattr(os, "fsync", os.fsync)  # the model puts its own in this place
    root, left = tmp_path / "inbox", tmp_path / "left"
    root.mkdir()
    model = UnsyncedModel(root)
    disk = Disk()
    disk.allocate(root / "part", 5)
    with (root / "part").open("r+b") as file:
        disk.write_unsynced(file.fileno(), root / "part", 0, b"bytes")
    disk.sync_file(root / "part")
    model.leave(left, 0)
    assert (left / "part").read_bytes() == b"bytes"
