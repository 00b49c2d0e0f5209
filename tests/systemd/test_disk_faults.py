"""Disks that fail under a running agent: full, read-only, giving errors. Real file systems, real agent, real clients.

Needs root for mounts; every mount is taken away again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contract.reasons import Reason
from tests.soak.scene import GOOD, Scene

pytestmark = [
    pytest.mark.root,
    pytest.mark.broker,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs root and e2fsprogs"),
    pytest.mark.timeout(400),
]

STORE_FAULTS = {Reason.STORE_FULL, Reason.STORE_BROKEN}


def command(*words: str | Path, check: bool = True) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
    return done.stdout.strip()


def unmount(place: Path) -> None:
    """As soon as the last process of a killed agent has let go of it."""
    deadline = time.monotonic() + 120
    while subprocess.run(["umount", str(place)], capture_output=True, timeout=120, check=False).returncode != 0:
        assert time.monotonic() < deadline, f"{place} is in use"
        time.sleep(0.2)


@contextmanager
def mounted(place: Path, *options: str | Path) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    command("mount", *options, place)
    try:
        yield
    finally:
        command("umount", "--lazy", place, check=False)


@contextmanager
def disk(backing: Path, megabytes: int) -> Iterator[Path]:
    """A block device of its own, which takes from ``backing`` what is written to it and no more."""
    image = backing / "disk.img"
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=0", image)
    device = Path(command("losetup", "--find", "--show", image))
    try:
        yield device
    finally:
        command("losetup", "--detach", device, check=False)


@contextmanager
def scene(root: Path, bundle: Path) -> Iterator[Scene]:
    made = Scene(root, bundle)
    try:
        yield made
    finally:
        made.close()


def fill(place: Path) -> None:
    """Leave not one byte."""
    with (place / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def refused_by_the_store(scene: Scene, version: str) -> None:
    """The device says that its disk is the reason, runs what it ran, and stays."""
    scene.asker.desire(version)
    scene.until(lambda: (scene.asker.reported.get("error") or {}).get("reason") in STORE_FAULTS)
    assert scene.active == GOOD
    assert scene.world.agent.is_running()


def use_up_inodes(place: Path) -> None:
    """Leave room for bytes and none for one more file."""
    with contextlib.suppress(OSError):
        for number in range(100_000):
            (place / f"filler-{number}").touch()


def serves_from_memory(scene: Scene, why: Reason, before: int) -> None:
    """What is active answers; ``reported`` says why no more is done."""
    scene.until(lambda: scene.answered() > before + 3)
    assert scene.active == GOOD
    scene.until(lambda: [each["reason"] for each in scene.asker.reported.get("warnings", [])] == [why])
    assert scene.world.run("status") == 0, "it still says how it is"
    doctor = [sys.executable, "-m", "agent.cli", "doctor", "--json", "--config", str(scene.world.root / "agent.toml")]
    page = json.loads(subprocess.run(doctor, capture_output=True, text=True, timeout=120, check=False).stdout)
    bad = [each for each in page["findings"] if each["verdict"] == "bad"]
    assert [each["check"] for each in bad] == ["state"], bad
    assert not any("--replace" in each["fix"] for each in page["findings"])


def ends_well(scene: Scene, version: str) -> None:
    """Everything asked is answered once, the wish is fulfilled, every byte of it is right."""
    scene.until(lambda: scene.active == version)
    scene.stop_asking()
    scene.until(lambda: not scene.asker.open)
    wrong = scene.wrong_answers()
    assert not wrong, wrong
    assert scene.world.end_agent() == 0
    assert scene.world.run("verify") == 0


def test_a_full_disk(tiny_bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "world" / "state"
    with (
        mounted(state, "-t", "tmpfs", "-o", "size=24M,mode=700", "tmpfs"),
        scene(tmp_path / "world", tiny_bundle) as found,
    ):
        fill(state)
        refused_by_the_store(found, found.world.publish())
        (state / "filler").unlink()
        ends_well(found, "1.2.0")


def test_a_disk_that_gives_errors_and_comes_back(tiny_bundle: Path, tmp_path: Path) -> None:
    """What lies below the disk is full, so writes to it fail with EIO, and the file system may give up, too."""
    backing, state = tmp_path / "backing", tmp_path / "world" / "state"
    with mounted(backing, "-t", "tmpfs", "-o", "size=48M", "tmpfs"), disk(backing, 200) as device:
        with mounted(state, "-o", "errors=remount-ro", device), scene(tmp_path / "world", tiny_bundle) as found:
            version = found.world.publish()
            fill(backing)
            refused_by_the_store(found, version)
            assert "Traceback" not in (found.world.root / "agent.log").read_text()
            (backing / "filler").unlink()
            found.world.kill_agent()
            unmount(state)
            command("e2fsck", "-y", "-f", device, check=False)
            command("mount", "-o", "errors=remount-ro", device, state)
            found.world.start_agent()
            ends_well(found, version)


def test_a_disk_that_can_only_be_read(tiny_bundle: Path, tmp_path: Path) -> None:
    backing, state = tmp_path / "backing", tmp_path / "world" / "state"
    with mounted(backing, "-t", "tmpfs", "-o", "size=96M", "tmpfs"), disk(backing, 64) as device:
        with mounted(state, "-o", "errors=remount-ro", device), scene(tmp_path / "world", tiny_bundle) as found:
            version = found.world.publish()
            # As the kernel does it when a disk fails, with files open for writing.
            command("mount", "-o", "remount,abort", state, check=False)
            refused_by_the_store(found, version)
            assert found.world.run("status") == 0, "it still says how it is"
            found.world.kill_agent()
            unmount(state)
            command("e2fsck", "-y", "-f", device, check=False)
            command("mount", "-o", "ro", device, state)
            before = found.answered()
            found.world.start_agent()
            serves_from_memory(found, Reason.STORE_BROKEN, before)
            command("mount", "-o", "remount,rw", state)
            ends_well(found, version)


@pytest.mark.parametrize("what", ["bytes", "inodes", "bytes of ext4"])
def test_a_start_on_a_full_disk(tiny_bundle: Path, tmp_path: Path, what: str) -> None:
    """What is active serves, the device says why it does no more, and it goes on once there is room, by itself."""
    backing, state = tmp_path / "backing", tmp_path / "world" / "state"
    with mounted(backing, "-t", "tmpfs", "-o", "size=96M", "tmpfs"), disk(backing, 48) as device:
        tmpfs = ("-t", "tmpfs", "-o", "size=24M,mode=700,nr_inodes=300", "tmpfs")
        with (
            mounted(state, *([device] if what == "bytes of ext4" else tmpfs)),
            scene(tmp_path / "world", tiny_bundle) as found,
        ):
            # Ended in order it takes the log with it, and has to make it anew; killed, it leaves one to be read.
            assert found.world.end_agent() == 0
            if what == "inodes":
                use_up_inodes(state)
            else:
                fill(state)
            before = found.answered()
            found.world.start_agent()
            serves_from_memory(found, Reason.STORE_FULL, before)
            version = found.world.publish()
            refused_by_the_store(found, version)
            for filler in state.glob("filler*"):
                filler.unlink()
            ends_well(found, version)
            assert "Traceback" not in (found.world.root / "agent.log").read_text()
