"""What a device publishes, as bytes on topics."""

from __future__ import annotations

import json
from typing import Any

from edge_bundle.broker_session import Message

ROOT = "edge/v1"


def bundle(version: str) -> dict[str, Any]:
    return {"name": "smollm2", "version": version, "digest": "ab" * 32, "security_epoch": 0}


def message(device: str, kind: str, body: Any, *, retained: bool = False) -> Message:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Message(f"{ROOT}/d/{device}/{kind}", payload, retained)


def info(*groups: str) -> dict[str, Any]:
    limits = dict.fromkeys(
        ("max_request_bytes", "queue", "queue_per_client", "max_priority", "stream_interval_ms",
         "results_kept_seconds", "results_kept_bytes"), 1,
    )  # fmt: skip
    engine = {
        "engine": "batched", "why": "every check passed", "slots": 8, "context_length": 8192, "vocab_size": 49152,
        "capabilities": [], "load_seconds": 0.5, "isolation": "seccomp", "reproducible": False,
        "reproducible_why": "a lone row is rounded", "deviation": {"logits": 3.0, "nats": 0.0221},
    }  # fmt: skip
    return {
        "device": "d", "api": ROOT, "groups": list(groups), "versions": {"agent": "0.1.0"},
        "host": {"arch": "aarch64", "cores": 4, "ram_bytes": 4 << 30}, "limits": limits, "bundle": bundle("1.0.0"),
        "engine": engine,
    }  # fmt: skip


def reported(phase: str = "IDLE", **more: Any) -> dict[str, Any]:
    plain = {"revision": "r", "phase": phase, "progress": None, "active": bundle("1.0.0"), "previous": None}
    return {**plain, "error": None, **more}


def health(*reasons: str, ready: bool = True, queue: int = 0, active: int = 0) -> dict[str, Any]:
    return {"ready": ready, "reasons": list(reasons), "queue": queue, "active": active}


def system(degrees: float = 55.0) -> dict[str, Any]:
    return {
        "at": 1.0, "cpu": {"percent": 40.0, "cores": [40.0]}, "memory": {"total": 4 << 30, "available": 1 << 30},
        "disk": {"total": 10**10, "free": 4 * 10**9}, "temperatures": {"cpu_thermal": degrees, "board": 20.0},
        "temperature_limits": {"cpu_thermal": 80.0}, "processes": [],
    }  # fmt: skip


def llm(tokens: int, *, generating: int = 0, start: float = 1.0) -> dict[str, Any]:
    return {
        "start": start, "queue": 2, "active": 1, "generating": generating, "requests": {"stop": 3}, "refused": {},
        "crashes": 0, "gen_ai.usage.output_tokens": tokens,
    }  # fmt: skip


def event(**detail: Any) -> dict[str, Any]:
    return {"at": "2026-01-02T03:04:05.678Z", "detail": detail}
