"""What a child process says when the disk is full or there is no memory, whoever noticed and however it was put."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import BuildRefused
from packager import subprocess_job
from packager.subprocess_job import Job, Task, ran_full, run_child
from tests.forked import start_module


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a command starts its children is what is tried here."""
    monkeypatch.setattr(subprocess_job, "start_module", start_module)


def nested() -> Exception:
    """A library's own error, caused by the system's."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "anything"),
        OSError(errno.EDQUOT, "anything"),
        nested(),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_known_by_its_number_its_cause_or_its_words(error: Exception, tmp_path: Path) -> None:
    assert ran_full(error, [tmp_path])


def test_other_errors_are_not_the_disks(tmp_path: Path) -> None:
    assert not ran_full(OSError(errno.EACCES, "no"), [tmp_path / "not" / "there"])
    assert not ran_full(RuntimeError("no"), [])


WORK = """
from packager.subprocess_job import Job, Task, child_main
def work(job, reporter):
    {line}
child_main(Task("hungry_process", Job, type(None), "the hungry one"), work)
"""


@pytest.mark.parametrize(
    "line",
    [
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)); bytearray(2**31)",
        "import numpy; numpy.zeros(2**55)",
        "import torch; torch.empty(2**55)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_memory_that_ran_out_is_one_sentence(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hungry_process.py").write_text(WORK.format(line=line))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(BuildRefused, match="memory ran out while the hungry one was at work; end other programs"):
        run_child(Task("hungry_process", Job, type(None), "the hungry one"), Job(), tmp_path / "log")


@pytest.mark.parametrize("alive", [True, False])
def test_a_child_whose_parent_was_killed_while_it_loaded_does_nothing(alive: bool, tmp_path: Path) -> None:
    (tmp_path / "late_process.py").write_text(WORK.format(line=f"open({str(tmp_path / 'worked')!r}, 'w')"))
    reading, writing = os.pipe()
    if not alive:
        os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "late_process"], input=b"{}", stdout=writing, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": f"{Path.cwd()}:{tmp_path}"},
    )  # fmt: skip
    os.close(writing)
    assert (tmp_path / "worked").exists() is alive
    assert done.returncode == (0 if alive else -signal.SIGKILL)


ROOMY = 1100
"""Kilobytes, a little more than the build says it needs."""


@pytest.mark.root
@pytest.mark.parametrize("kilobytes", [485, 900])
def test_a_disk_that_fills_up_in_the_middle_of_a_build(tiny_checkpoint: Path, tmp_path: Path, kilobytes: int) -> None:
    """Bundle, cache and the log itself on a file system that had room when the build began, and of which something
    else leaves too little for the graph, or for the source's logits.
    """
    if shutil.which("unshare") is None:
        pytest.fail("unshare is missing: apt install util-linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    line = (
        f"( until [ -d {disk}/cache ]; do sleep 0.02; done; head -c {ROOMY - kilobytes}k /dev/zero >{disk}/another ) & "
        f"mount -t tmpfs -o size={ROOMY}k tmpfs {disk} && {sys.executable} -m packager.cli build {tiny_checkpoint} "
        f"--quantizer rtn --name tiny --version 1.0.0 --out {disk}/out --cache {disk}/cache; status=$?; ls {disk} >&2; "
        "exit $status"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", line], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 5, done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "cache"  # and no "out"


@pytest.mark.root
def test_a_disk_that_fills_up_in_the_last_stage_loses_nothing(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The graph has room where the bundle goes, and what is written about it has not; with more room it goes on."""
    if shutil.which("unshare") is None:
        pytest.fail("unshare is missing: apt install util-linux")
    disk, cache = tmp_path / "disk", tmp_path / "cache"
    disk.mkdir()
    parts = [path.stat().st_size for path in tiny_bundle.iterdir() if path.is_file() and path.name != "manifest.json"]
    pages = sum(-(-size // 4096) for size in parts) + 2
    build = (
        f"{sys.executable} -m packager.cli build {tiny_checkpoint} --quantizer rtn --name tiny --version 1.0.0 "
        f"--out {disk}/out --cache {cache}"
    )
    line = (
        f"mount -t tmpfs -o size={4 * pages}k tmpfs {disk} && {build}; first=$?; "
        f"echo OUT >&2; ls -A {disk} >&2; echo GRAPHS >&2; ls {cache}/graphs >&2; echo AGAIN >&2; "
        f"mount -o remount,size=100M {disk} && {build} && exit $first"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", line], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 5, done.stderr
    first, _, rest = done.stderr.partition("OUT\n")
    assert "[7/7]" in first
    assert "no space left" in first
    assert "Traceback" not in done.stderr
    left, _, rest = rest.partition("GRAPHS\n")
    assert left == "", "nothing of the bundle that was not finished"
    kept, _, again = rest.partition("AGAIN\n")
    assert len(kept.split()) == 1, "the graph is there until its bundle is finished"
    assert "[7/7]" in again
    assert not list((cache / "graphs").iterdir())
