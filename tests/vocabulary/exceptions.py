"""Files that still have retired words, each with those words; what is done is taken out, and nothing is added."""

from __future__ import annotations

EXCEPTIONS: dict[str, str] = {}
