"""Which architectures the model builder of onnxruntime-genai makes, by its own code, and what families are called.

Known before gigabytes are read. Importing the builder takes torch and seconds, so its source is read as text.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from contract.errors import BuildRefused

_BRANCH = re.compile(r'architectures\[0\] == "(\w+)"')
_KINDS = ("ForCausalLM", "ForConditionalGeneration", "Model")

ODD_NAMES = {
    "Ernie4_5ForCausalLM": "ernie",
    "GptOssForCausalLM": "gpt-oss",
    "HunYuanDenseV1ForCausalLM": "hunyuan",
    "LFM2AudioForConditionalGeneration": "lfm2-audio",
}
"""Families whose name in manifests is not simply the beginning of their architecture's."""

TEXT_OF = {
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3_text"),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM", "mistral"),
    "Phi3VForCausalLM": ("Phi3ForCausalLM", "phi3"),
    "Qwen2_5_VLForConditionalGeneration": ("Qwen2ForCausalLM", "qwen2"),
    "Qwen3VLForConditionalGeneration": ("Qwen3ForCausalLM", "qwen3"),
}
"""Models that see, whose text model is one of another architecture here: that and its model type."""

SEEING = frozenset({"Gemma3ForConditionalGeneration", "Phi3VForCausalLM", "Qwen2_5_VLForConditionalGeneration"})
"""Those of them that are built whole (:mod:`packager.vision`)."""

NOT_HERE = {
    "GraniteMoeHybridForCausalLM": "its layers keep a state that no engine of a device knows",
    "Lfm2MoeForCausalLM": "the builder makes its experts for other providers than the CPU only",
    "OlmoForCausalLM": "the builder takes its norms for those of another family, and what it makes is another model",
    "Phi4MMForCausalLM": "its text runs through an adapter that is chosen by what it is shown",
    "PhiMoEForCausalLM": "the builder makes it for CUDA only",
    "VideoChatFlashQwenForCausalLM": "it runs Python files of the checkpoint itself",
}
"""Architectures that the builder knows and this packager does not offer, with the reason."""


@functools.cache
def known_architectures() -> frozenset[str]:
    """Every architecture that the builder has a branch for.

    Raises:
        BuildRefused: the builder is not installed.
    """
    spec = importlib.util.find_spec("onnxruntime_genai")
    if spec is None or spec.origin is None:
        raise BuildRefused(
            "onnxruntime-genai is not installed; install the packager with its extra: edge-bundle[packager]"
        )
    text = (Path(spec.origin).parent / "models" / "builder.py").read_text("utf-8")
    return frozenset(_BRANCH.findall(text))


def offered_architectures() -> frozenset[str]:
    """Those that become text bundles as they are."""
    return frozenset(
        name
        for name in known_architectures() - NOT_HERE.keys() - TEXT_OF.keys()
        if name.endswith("ForCausalLM") or name.startswith("ChatGLM")
    )


def family_of(architecture: str) -> str:
    """What manifests call the family of ``architecture``."""
    if architecture in ODD_NAMES:
        return ODD_NAMES[architecture]
    stem = next((architecture.removesuffix(kind) for kind in _KINDS if architecture.endswith(kind)), architecture)
    return stem.lower()


def check_architecture(architecture: str) -> str:
    """``architecture`` if it can become a text bundle.

    Raises:
        BuildRefused: with the families that can, or the way to its text model.
    """
    if architecture in TEXT_OF and architecture in known_architectures():
        raise BuildRefused(f"{architecture} sees and reads; add --text-only for a bundle of the model that reads")
    if architecture not in offered_architectures():
        why = NOT_HERE.get(architecture, "the model builder does not know it as a model of text")
        raise BuildRefused(
            f"the architecture {architecture[:80]!r} cannot be built: {why}; "
            f"known are {', '.join(sorted({family_of(name) for name in offered_architectures()}))}"
        )
    return architecture
