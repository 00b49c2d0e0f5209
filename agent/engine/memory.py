"""How much memory this process may use, and how it is divided (:mod:`contract.bundle.device_plan`)."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

from agent.host.memory import available_memory, mapped_bytes
from contract.bundle.device_plan import KvPlan, plan_given, plan_kv

RESERVE = 0.5
"""Share of the available memory that scratch leaves free for everybody else."""


def usable_bytes() -> int:
    """What may be used for scratch: half of what is available now, limits of control groups included."""
    return int(available_memory() * RESERVE)


def room_bytes(folders: Iterable[Path], leaving: int = 0) -> int:
    """What loaded weights leave. Not available is what this process has mapped of its weights in ``folders``, which the
    kernel takes for file cache; ``leaving`` is free soon, when the worker ends that this one takes the place of.
    """
    return max(0, available_memory() - mapped_bytes(folders) + leaving)


def allocatable_bytes() -> int:
    """What this process may still allocate by its limit (``RLIMIT_DATA``), whether it is written or not."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text("ascii", "replace"), re.MULTILINE)
    return max(0, limit - (0 if found is None else int(found[1]) * 1024))


def plan_cache(
    kv_token: int,
    context_length: int,
    folders: Iterable[Path],
    *,
    max_bytes: int = 0,
    leaving: int = 0,
    slots: int = 0,
    least: int = 0,
    picture: int = 0,
) -> KvPlan:
    """Room for keys and values: of ``max_bytes`` where the operator says so, else of what there is; for as many
    ``slots`` as the operator says, else for as many as go well with that. ``least``, ``picture``: see
    :func:`~contract.bundle.device_plan.plan_kv`.
    """
    if max_bytes:
        return plan_given(max_bytes, kv_token, context_length, slots, least=least)
    return plan_kv(room_bytes(folders, leaving), kv_token, context_length, slots, least=least, picture=picture)


def release_freed_memory() -> None:
    """Give back what loading needed and left behind: glibc keeps freed memory for later, here a third of the whole.

    Other C libraries have no such call, or need none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
