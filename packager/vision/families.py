"""The families that are built whole, by the architecture in config.json."""

from __future__ import annotations

from pathlib import Path

from packager.sources.text_only import find_vision
from packager.vision.family import VisionFamily
from packager.vision.gemma3_family import Gemma3Vision
from packager.vision.phi3v_family import Phi3Vision
from packager.vision.qwen25vl_family import Qwen25Vision

FAMILIES: dict[str, VisionFamily] = {
    "Gemma3ForConditionalGeneration": Gemma3Vision(),
    "Phi3VForCausalLM": Phi3Vision(),
    "Qwen2_5_VLForConditionalGeneration": Qwen25Vision(),
}
"""As many as :data:`packager.sources.families.SEEING` names (a test compares)."""


def vision_family(path: Path) -> VisionFamily:
    """That of the checkpoint in ``path``, which is one that sees and is built whole."""
    architecture = find_vision(path)
    assert architecture is not None  # what is not known to see is not opened so
    return FAMILIES[architecture]
