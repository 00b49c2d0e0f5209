"""How a candidate will take over: planned when it is known which one it is, before any of it travels, and again right
before it is tried, with the memory that is there then.
"""

from __future__ import annotations

from msgspec import Struct

from agent.host.memory import available_memory, total_memory
from agent.install.ports import Serving
from agent.install.settings import InstallSettings
from agent.worker.settings import WorkerSettings
from contract.bundle.device_plan import SYSTEM_BYTES, size_text
from contract.bundle.manifest import Manifest
from contract.mqtt.reports import PlannedSwap


class Needs(Struct, frozen=True):
    """Bytes that a manifest asks for: of a whole device (``min_ram``), and what its build took (``peak_rss``)."""

    min_ram: int
    peak_rss: int

    @classmethod
    def of(cls, manifest: Manifest) -> Needs:
        return cls(manifest.requires.min_ram_bytes, manifest.budget.peak_rss_bytes)


def plan_swap(serving: Serving, settings: InstallSettings, worker: WorkerSettings, needs: Needs) -> PlannedSwap | None:
    """How a bundle that needs so much will take over from the one that serves; None where none does.

    How long requests wait is bounded by the settings: that of the load, and of the canary where it runs alone.
    """
    old = serving.bundle
    if old is None:
        return None
    short = _short_for_both(serving, settings, needs, Needs.of(old.manifest))
    if short:
        return PlannedSwap("aside", settings.canary_seconds + worker.load_seconds, short)
    if settings.swap == "drain":
        return PlannedSwap("drain", worker.load_seconds, "this device is set to it")
    return PlannedSwap("overlap", 0.0, "there is memory for both")


def _short_for_both(serving: Serving, settings: InstallSettings, needs: Needs, old: Needs) -> str:
    """What is missing for two models at a time, in words; empty if nothing is."""
    both, whole = old.min_ram + needs.min_ram - SYSTEM_BYTES, total_memory()
    if both > whole:
        return f"two models need {size_text(both)} of memory, and this device has {size_text(whole)}"
    if not fits_beside(serving, settings, needs.peak_rss):
        needed, free = needs.peak_rss + settings.reserve_bytes, _left(serving)
        return f"it needs {size_text(needed)} of memory beside the one that serves, and {size_text(free)} are free"
    return ""


def fits_beside(serving: Serving, settings: InstallSettings, needed: int) -> bool:
    """Whether a model that takes ``needed`` bytes fits beside the one that serves, whose weights keep their pages."""
    return _left(serving) >= needed + settings.reserve_bytes


def _left(serving: Serving) -> int:
    return max(0, available_memory() - serving.footprint.mapped_bytes)
