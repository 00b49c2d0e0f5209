"""Running the tests of one check in a process of their own, with and without the check."""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from tests.sabotage.mutation import Mutation
from tests.sabotage.removal import remove, remove_in_children

for _slow in (
    "asyncio", "cryptography.hazmat.primitives.asymmetric.ed25519", "hypothesis", "rich.progress",
    "securesystemslib.signer", "sqlite3", "torch",
):  # fmt: skip
    # What takes long to import and has no check in it: every trial begins as a copy of this process.
    importlib.import_module(_slow)


SECONDS = 120
"""A test that takes longer says nothing, unless it is known to hang without its check."""

HANG_SECONDS = 4
"""How long such a test is waited for: it has noticed as well as one that fails."""

TRIAL_SECONDS = 150
"""A trial that a time-out does not end, since it hangs while it cleans up, is killed."""

MEMORY_BYTES = 4 << 30

_FAULTS_OF_THE_TABLE = (NameError, SyntaxError, ImportError)


class Result(Struct, frozen=True):
    """``failed``: the tests (without their parameters) that failed; ``broken``: why the trial says nothing."""

    failed: frozenset[str]
    broken: str | None = None


class _Recorder:
    def __init__(self, hangs: bool) -> None:
        self._hangs = hangs
        self.failed: set[str] = set()
        self.ran: set[str] = set()
        self.broken: str | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if call.excinfo is not None:
            what = call.excinfo.exconly()
            if call.excinfo.errisinstance(_FAULTS_OF_THE_TABLE) or ("Timeout (>" in what and not self._hangs):
                self.broken = f"{item.nodeid}: {what[:200]}"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.split("[")[0]
        self.ran.add(name)
        if report.failed:
            self.failed.add(name)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = f"{report.nodeid} cannot be collected"


def try_without(cuts: Sequence[Mutation], tests: Sequence[str], *, hangs: bool = False) -> Result:
    """Run ``tests`` in a copy of this process that imports its modules without ``cuts``.

    ``hangs``: without the check the tests do not fail but never end.
    """
    with tempfile.TemporaryDirectory(prefix="sabotage-") as scratch:
        answer = Path(scratch, "answer.json")
        gc.freeze()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                answer.write_text(json.dumps(_run(cuts, tests, Path(scratch, "tests"), hangs)))
                status = 0
            finally:
                os._exit(status)
        ended = _ended(child, TRIAL_SECONDS)
        if ended is None:
            return Result(frozenset(tests if hangs else ()), None if hangs else "the trial did not end")
        if ended or not answer.exists():
            return Result(frozenset(), f"the trial ended with status {ended}")
        failed, broken = json.loads(answer.read_text())
        return Result(frozenset(failed), broken)


def _ended(child: int, seconds: float) -> int | None:
    """The status of ``child`` once it ends; None where it had to be killed, since not even a time-out ended it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _run(cuts: Sequence[Mutation], tests: Sequence[str], scratch: Path, hangs: bool) -> tuple[list[str], str | None]:
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    # Without a bound on what is read, a test may read until there is no memory left.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        remove_in_children(cuts, scratch.with_name("children"))
        remove(cuts)
    except (AssertionError, LookupError) as error:
        return [], str(error)
    recorder = _Recorder(hangs)
    seconds = HANG_SECONDS if hangs else SECONDS
    words = ["-q", "-p", "no:cacheprovider", "--timeout", str(seconds), "--basetemp", str(scratch), *tests]
    status = pytest.main(words, plugins=[recorder])
    missing = {test for test in tests if test not in recorder.ran}
    if recorder.broken is None and missing:
        recorder.broken = f"not run (status {int(status)}): {', '.join(sorted(missing))}"
    return sorted(recorder.failed), recorder.broken
