"""The real model with a small context."""

from __future__ import annotations

from tests.agent.engine.short_bundle import short_bundle

__all__ = ["short_bundle"]
