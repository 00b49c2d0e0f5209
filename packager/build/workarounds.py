"""Known faults of the model builder, each mended in this one room and nowhere else.

Every entry says what goes wrong without it, in which versions that was seen, and what is done about it. Mending happens
between the builder's two calls, on the configuration that it has read or on its own classes in this process: no file of
the source or of an installed package is touched. ``tests/packager/build/test_workarounds.py`` builds without each entry
and fails as soon as the symptom is gone, which is when the entry goes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from msgspec import Struct


class Workaround(Struct, frozen=True):
    """One fault. ``applies`` looks at transformers' configuration, ``apply`` changes it and the builder's options."""

    name: str
    symptom: str
    fix: str
    applies: Callable[[Any], bool]
    apply: Callable[[Any, dict[str, Any]], None]


def apply_workarounds(config: Any, options: dict[str, Any], skip: str = "") -> list[str]:
    """Apply every workaround that ``config`` needs; their names. ``skip`` leaves one out, to show its symptom."""
    applied = []
    for workaround in WORKAROUNDS:
        if workaround.name != skip and workaround.applies(config):
            workaround.apply(config, options)
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


def _rotates(config: Any) -> bool:
    from packager.graph.rope import Rotary

    try:
        Rotary(config)
    except (ValueError, LookupError, TypeError):  # code of the checkpoint's own, or no rotary embedding
        return False
    return True


def _take_own_tables(config: Any, options: dict[str, Any]) -> None:
    import torch
    from onnxruntime_genai.models import builder

    from packager.graph.rope import LONG, SHORT, SINGLE, Rotary

    rotary = Rotary(config)

    def make_tables(self: Any) -> tuple[Any, Any]:
        role = getattr(self, "table_role", SINGLE)
        if "multi_cache" in self.rope_attrs:
            role = (
                LONG if self.rope_attrs["rescale_factors"] is self.rope_attrs["multi_cache"]["long_factor"] else SHORT
            )
        tables: tuple[Any, Any] = rotary.tables(role, torch.arange(self.rope_attrs["cache_length"]))
        return tables

    def make_both(self: Any) -> None:
        self.cos_cache_global_name, self.sin_cache_global_name = "cos_cache_global", "sin_cache_global"
        self.cos_cache_local_name, self.sin_cache_local_name = "cos_cache_local", "sin_cache_local"
        for self.table_role, end in (("full_attention", "global"), ("sliding_attention", "local")):
            self.rope_attrs["create_caches"] = True
            self.make_rotary_embedding_caches(cos_cache_name=f"cos_cache_{end}", sin_cache_name=f"sin_cache_{end}")

    builder.Model.make_rotary_embedding_caches_from_scratch = make_tables
    builder.Gemma3Model.make_rotary_embedding_multi_cache = make_both
    if _rope(config).get("rope_type") in ("linear", "dynamic", "yarn", "llama3") and _model_type(config) != "gpt_oss":
        # Scaled already: what else the builder would do with the kind of scaling, it would do once more.
        config.rope_parameters = {**_rope(config), "rope_type": "default"}


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


def _own_epsilon(config: Any) -> float | None:
    if getattr(config, "rms_norm_eps", None) is not None or _model_type(config) == "lfm2":
        return None
    named = getattr(config, "layer_norm_eps", None) or getattr(config, "norm_eps", None)
    # OLMo's is written in its code.
    return float(named) if named else 1e-5 if _model_type(config) == "olmo" else None


def _names_epsilon_otherwise(config: Any) -> bool:
    return _own_epsilon(config) is not None


def _name_epsilon(config: Any, options: dict[str, Any]) -> None:
    config.rms_norm_eps = _own_epsilon(config)


def _has_still_layers(config: Any) -> bool:
    return _model_type(config) == "smollm3" and not all(getattr(config, "no_rope_layers", None) or [1])


def _leave_still_layers(config: Any, options: dict[str, Any]) -> None:
    from onnxruntime_genai.models import builder

    plain = builder.SmolLM3Model

    def make_attention(self: Any, layer_id: int, attention: Any, root_input: Any, **more: Any) -> None:
        rotates = self.attention_attrs["rope"]
        self.attention_attrs["rope"] = rotates and bool(self.no_rope_layers[layer_id])
        try:
            plain.make_attention(self, layer_id, attention, root_input, **more)
        finally:
            self.attention_attrs["rope"] = rotates

    builder.SmolLM3Model = type("SmolLM3Model", (plain,), {"make_attention": make_attention})


def _is_gemma(config: Any) -> bool:
    return _model_type(config) in ("gemma", "gemma2", "gemma3_text")


def _add_in_full(config: Any, options: dict[str, Any]) -> None:
    import torch
    from onnxruntime_genai.models import builder

    load = builder.Model.load_weights

    def load_weights(self: Any, input_path: str) -> Any:
        model = load(self, input_path)
        # What the builder reads of a checkpoint that is quantised already is no module of torch's.
        parts = model.modules() if isinstance(model, torch.nn.Module) else _parts(model.modules())
        for part in parts:
            weight = getattr(part, "weight", None)
            if weight is not None and weight.ndim == 1:
                part.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
        self.embed_attrs["scale"] = float(self.hidden_size) ** 0.5
        return model

    builder.Model.load_weights = load_weights


def _parts(modules: Iterable[Any]) -> Iterator[Any]:
    """Everything that holds weights in what the builder's own loaders make, however deep."""
    for module in modules:
        yield module
        inner = [each for each in vars(module).values() if type(each).__module__ == type(module).__module__]
        yield from _parts(inner)


def _has_endless_window(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    local = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return local and isinstance(window, int) and window >= config.max_position_embeddings


def _keep_whole_caches(config: Any, options: dict[str, Any]) -> None:
    options["windowed_kv_cache"] = False


def _stream_weights(config: Any, options: dict[str, Any]) -> None:
    from onnxruntime_genai.models import builder

    from packager.quantize.streaming import stream_weights

    stream_weights(builder.Model)


def _model_type(config: Any) -> str:
    return str(getattr(config, "model_type", ""))


WORKAROUNDS = (
    Workaround(
        name="stray-commit",
        symptom="the graph names the git commit of whatever repository the environment lies in as the builder's own: "
        "the same inputs give other bytes after every commit",
        fix="name the commit that the package says it was made from",
        applies=_always,
        apply=_name_package_commit,
    ),
    Workaround(
        name="rope-tables",
        symptom="linear scaling of a Llama is dropped, YaRN as Qwen documents it ends in ZeroDivisionError and is not "
        "cut where it should be, the local layers of a scaled Gemma 3 (4B and larger) get the global layers' scaling",
        fix="take all angles from transformers' own code",
        applies=_rotates,
        apply=_take_own_tables,
    ),
    Workaround(
        name="longrope-type",
        symptom="a Phi-3.5 or Phi-4-mini checkpoint saved by transformers 5 ends the builder with KeyError: 'type'",
        fix="name the kind of scaling under its older key as well",
        applies=_needs_rope_type,
        apply=_add_rope_type,
    ),
    Workaround(
        name="gemma3-nested-rope",
        symptom="Gemma 3 ends the builder with KeyError: 'rope_type', since its rope parameters are kept by layer type",
        fix="hand the global layers' entry over as the model's, and the local layers' base apart",
        applies=_has_nested_rope,
        apply=_flatten_rope,
    ),
    Workaround(
        name="norm-epsilon",
        symptom="Phi-2 and Nemotron name the epsilon of their norms otherwise than the builder does, which takes 1e-6",
        fix="name it as the builder does",
        applies=_names_epsilon_otherwise,
        apply=_name_epsilon,
    ),
    Workaround(
        name="gemma-rounding",
        symptom="the norms of a Gemma in bfloat16 are rounded after one is added, and its embedding's scale to two "
        "decimals: logits are off by several percent of their spread",
        fix="hand norms over in fp32, and the whole scale",
        applies=_is_gemma,
        apply=_add_in_full,
    ),
    Workaround(
        name="still-layers",
        symptom="SmolLM3 ends the builder with KeyError: 'position_ids' at the first layer that does not rotate",
        fix="say of such a layer that it has no rotary embedding at all",
        applies=_has_still_layers,
        apply=_leave_still_layers,
    ),
    Workaround(
        name="dropped-window",
        symptom="Mistral and Phi-3 attend over everything: the graph has no window, but the configuration sizes the "
        "cache by it, so that longer prompts are refused by the runtime",
        fix="name every layer as a local one, which the builder heeds",
        applies=_loses_window,
        apply=_name_local_layers,
    ),
    Workaround(
        name="window-beyond-context",
        symptom="caches are to be as long as a window that is longer than the context: the runtime refuses any prompt",
        fix="keep caches as long as the context",
        applies=_has_endless_window,
        apply=_keep_whole_caches,
    ),
    Workaround(
        name="all-weights-at-once",
        symptom="every weight is in memory in fp32 before the first is quantised: 7.3 GiB for a model of a billion "
        "parameters, 19 GiB for 3.8 billion",
        fix="hand weights to the quantizer in pieces as it comes to them",
        applies=_always,
        apply=_stream_weights,
    ),
)
"""In the order in which they are applied."""
