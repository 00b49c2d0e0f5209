"""Known faults of the model builder, each mended in this one room and nowhere else.

Every entry says what goes wrong without it, in which versions that was seen, and what is done about it. Mending happens
between the builder's two calls, on the configuration that it has read or on its own classes in this process: no file of
the source or of an installed package is touched. ``tests/packager/test_workarounds.py`` builds without each entry and
fails as soon as the symptom is gone, which is when the entry goes too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

SEEN = {"onnxruntime-genai": "0.18.0", "transformers": "5.23.0"}
"""The versions that all of these were seen in."""


class Workaround(Struct, frozen=True):
    """One fault. ``applies`` looks at transformers' configuration, ``mend`` changes it and the builder's options."""

    name: str
    symptom: str
    fix: str
    applies: Callable[[Any], bool]
    mend: Callable[[Any, dict[str, Any]], None]


def mend(config: Any, options: dict[str, Any], skip: str = "") -> list[str]:
    """Apply every workaround that ``config`` needs; their names. ``skip`` leaves one out, to show its symptom."""
    applied = []
    for workaround in WORKAROUNDS:
        if workaround.name != skip and workaround.applies(config):
            workaround.mend(config, options)
            applied.append(workaround.name)
    return applied


def _always(config: Any) -> bool:
    return True


def _name_package_commit(config: Any, options: dict[str, Any]) -> None:
    import onnxruntime_genai
    from onnxruntime_genai.models import builder

    commit = getattr(onnxruntime_genai, "__commit__", None)
    builder.Model.get_genai_commit = classmethod(lambda cls: commit)


def _rope(config: Any) -> dict[str, Any]:
    parameters = getattr(config, "rope_parameters", None)
    return parameters if isinstance(parameters, dict) else {}


def _needs_rope_type(config: Any) -> bool:
    return _rope(config).get("rope_type") == "longrope" and "type" not in _rope(config)


def _add_rope_type(config: Any, options: dict[str, Any]) -> None:
    config.rope_parameters["type"] = config.rope_parameters["rope_type"]


def _has_nested_rope(config: Any) -> bool:
    return _model_type(config) == "gemma3_text" and "full_attention" in _rope(config)


def _flatten_rope(config: Any, options: dict[str, Any]) -> None:
    nested = _rope(config)
    config.rope_local_base_freq = nested["sliding_attention"]["rope_theta"]
    config.rope_parameters = dict(nested["full_attention"])
    config.rope_theta = config.rope_parameters["rope_theta"]


def _scales_locals(config: Any) -> bool:
    return _has_nested_rope(config) and _rope(config)["full_attention"].get("rope_type") == "linear"


def _unscale_locals(config: Any, options: dict[str, Any]) -> None:
    from onnxruntime_genai.models import builder

    scaled = builder.Gemma3Model

    def make_both_caches(self: Any) -> None:
        scaled.make_rotary_embedding_multi_cache(self)
        self.rope_attrs.update(rescale_factors=1, create_caches=True)
        self.make_rotary_embedding_caches(
            cos_cache_name=self.cos_cache_local_name, sin_cache_name=self.sin_cache_local_name
        )

    builder.Gemma3Model = type("Gemma3Model", (scaled,), {"make_rotary_embedding_multi_cache": make_both_caches})


def _loses_window(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    return (
        _model_type(config) in ("mistral", "phi3")
        and isinstance(window, int)
        and 0 < window < config.max_position_embeddings
        and not getattr(config, "layer_types", None)
    )


def _name_local_layers(config: Any, options: dict[str, Any]) -> None:
    config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    # Caches as long as the window cannot be rolled back or shared by prefix; full ones give the same numbers.
    options["windowed_kv_cache"] = False


def _model_type(config: Any) -> str:
    return str(getattr(config, "model_type", ""))


WORKAROUNDS = (
    Workaround(
        name="stray-commit",
        symptom="the graph names the git commit of whatever repository the environment lies in as the builder's own: "
        "the same inputs give other bytes after every commit",
        fix="name the commit that the package says it was made from",
        applies=_always,
        mend=_name_package_commit,
    ),
    Workaround(
        name="longrope-type",
        symptom="a Phi-3.5 or Phi-4-mini checkpoint saved by transformers 5 ends the builder with KeyError: 'type'",
        fix="name the kind of scaling under its older key as well",
        applies=_needs_rope_type,
        mend=_add_rope_type,
    ),
    Workaround(
        name="gemma3-scaled-locals",
        symptom="the local layers of a scaled Gemma 3 (4B and larger) are rotated with the global layers' scaling",
        fix="make the local layers' rope tables again, without it",
        applies=_scales_locals,
        mend=_unscale_locals,
    ),
    Workaround(
        name="gemma3-nested-rope",
        symptom="Gemma 3 ends the builder with KeyError: 'rope_type', since its rope parameters are kept by layer type",
        fix="hand the global layers' entry over as the model's, and the local layers' base apart",
        applies=_has_nested_rope,
        mend=_flatten_rope,
    ),
    Workaround(
        name="dropped-window",
        symptom="Mistral and Phi-3 attend over everything: the graph has no window, but the configuration sizes the "
        "cache by it, so that longer prompts are refused by the runtime",
        fix="name every layer as a local one, which the builder heeds",
        applies=_loses_window,
        mend=_name_local_layers,
    ),
)
"""In the order in which they are applied."""
