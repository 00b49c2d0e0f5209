"""The families that are built whole, by the architecture in config.json."""

from __future__ import annotations

from pathlib import Path

from packager.sources.text_only import find_vision
from packager.vision.family import VisionFamily
from packager.vision.phi3v_family import Phi3Vision

FAMILIES: dict[str, VisionFamily] = {"Phi3VForCausalLM": Phi3Vision()}
"""As many as :data:`packager.sources.families.SEEING` names (a test compares)."""


def vision_family(path: Path) -> VisionFamily:
    """That of the checkpoint in ``path``, which is one that sees and is built whole."""
    architecture = find_vision(path)
    assert architecture is not None  # what is not known to see is not opened so
    return FAMILIES[architecture]
