"""The packager's child processes, forked from one that has loaded their libraries, instead of started.

A build has six of them, and each takes four seconds of a processor to load torch, transformers and the model builder. A
fork has them, and is otherwise what a start is: a process of its own, whose memory, crash and end are its own. Commands
that tests start as processes start their children as users' do.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import IO, Any

from packager import subprocess_job
from packager.subprocess_job import OFFLINE, PASSIVE, start_module

LOADED = [
    "torch", "safetensors.torch", "onnxruntime", "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto", "onnxruntime_genai.models.builder",
]  # fmt: skip
"""Modules whose loading takes nearly all of the time."""

STARTED = ("packager.evaluate.check_process", "packager.sources.hub_process")
"""Children that load none of them; the memory of the first is measured, and libraries are no part of it."""


UNSAID = "ignore:resource_tracker"
"""Locks of progress bars end with the forks that made them, and nobody gives them back."""


class _Handle:
    """A file descriptor that goes along to a fork."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _receive, (reduction.DupFd(self.number),)


def _receive(sent: Any) -> int:
    number: int = sent.detach()
    return number


class ForkedChild:
    """What :func:`packager.subprocess_job.start_module` gives, forked."""

    def __init__(self, module: str, noise: IO[bytes], env: dict[str, str]) -> None:
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        handles = (_Handle(theirs_in), _Handle(theirs_out), _Handle(noise.fileno()))
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_run, args=(module, env, str(Path.cwd()), *handles), daemon=True)
        self._process.start()
        os.close(theirs_in)
        os.close(theirs_out)
        self.stdin: IO[bytes] = os.fdopen(ours_in, "wb")
        self.stdout: IO[bytes] = os.fdopen(ours_out, "rb")

    def poll(self) -> int | None:
        """The exit status, negative for a signal, once there is one."""
        return self._process.exitcode

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self) -> int:
        """The exit status, negative for a signal."""
        self._process.join()
        status = self._process.exitcode
        assert status is not None
        return status


def _run(module: str, env: dict[str, str], directory: str, *handles: int) -> None:
    for place, handle in enumerate(handles):
        os.dup2(handle, place)
        os.close(handle)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _start(module: str, noise: IO[bytes], env: dict[str, str]) -> Any:
    return start_module(module, noise, env) if module in STARTED else ForkedChild(module, noise, env)


@contextmanager
def forked_children() -> Iterator[None]:
    """Within it, this process forks the packager's children. It may be entered within itself."""
    before = dict(os.environ)
    os.environ.update({**PASSIVE, **before, **OFFLINE})  # before the libraries read it
    if UNSAID not in sys.warnoptions:
        sys.warnoptions.append(UNSAID)  # before the process is started that would say it
    multiprocessing.set_forkserver_preload(LOADED)
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    outer, subprocess_job.start_module = subprocess_job.start_module, _start
    try:
        yield
    finally:
        subprocess_job.start_module = outer
