"""Every key that a ``genai_config.json`` may have, with the type of its value; whatever is not here is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from contract.errors import BundleRefused
from contract.identifiers import check_path
from contract.reasons import Reason

CONFIG_FILE = "genai_config.json"

MAX_NAME = 256
"""Longest string in it, file and tensor names."""

MAX_ITEMS = 4096
"""Longest list in it: layers, tokens that end a text."""


def refuse(path: str, what: str) -> BundleRefused:
    """The refusal of the key at ``path``."""
    return BundleRefused(Reason.CONFIG_NOT_ALLOWED, f"{CONFIG_FILE}: {path} {what}", field=path)


Rule = Callable[["ConfigWalk", str, Any], None]


class ConfigWalk:
    """One pass over a configuration: ``files`` are the bundle's paths, if known; ``graphs`` are those it names."""

    def __init__(self, files: Collection[str] | None) -> None:
        self.files = files
        self.graphs: list[str] = []

    def file(self, path: str, value: Any) -> None:
        """A file of the bundle, beside the configuration or below it."""
        if not isinstance(value, str):
            raise refuse(path, "must be a file name")
        try:
            name = str(check_path(value))
        except BundleRefused as error:
            raise refuse(path, f"is not a path inside the bundle: {error.message}") from error
        if self.files is not None and name not in self.files:
            raise refuse(path, f"names {name!r}, which is not in the bundle")

    def graph(self, path: str, value: Any) -> None:
        self.file(path, value)
        if PurePosixPath(value).suffix != ".onnx":
            raise refuse(path, "must name an .onnx file")
        self.graphs.append(value)


def _text(walk: ConfigWalk, path: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise refuse(path, f"must be a string of at most {MAX_NAME} characters")


def _tensor_name(walk: ConfigWalk, path: str, value: Any) -> None:
    """The runtime hands names of per-layer tensors to snprintf with the layer's number: one %d and nothing else."""
    _text(walk, path, value)
    if value.count("%") > 1 or ("%" in value and "%d" not in value):
        raise refuse(path, "may contain one %d and no other %")


def _integer(walk: ConfigWalk, path: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise refuse(path, "must be a 32-bit integer")


def _number(walk: ConfigWalk, path: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise refuse(path, "must be a number")


def _flag(walk: ConfigWalk, path: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise refuse(path, "must be true or false")


def _file(walk: ConfigWalk, path: str, value: Any) -> None:
    walk.file(path, value)


def _graph(walk: ConfigWalk, path: str, value: Any) -> None:
    walk.graph(path, value)


def _one_of(*allowed: str) -> Rule:
    def rule(walk: ConfigWalk, path: str, value: Any) -> None:
        if value not in allowed:
            raise refuse(path, f"must be one of {', '.join(allowed)}")

    return rule


def _list(rule: Rule) -> Rule:
    def check(walk: ConfigWalk, path: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise refuse(path, f"must be a list of at most {MAX_ITEMS}")
        for index, item in enumerate(value):
            rule(walk, f"{path}[{index}]", item)

    return check


def _table(**rules: Rule) -> Rule:
    return _keys(rules)


def _keys(rules: Mapping[str, Rule]) -> Rule:
    def check(walk: ConfigWalk, path: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise refuse(path or "it", "must be an object")
        for key, item in value.items():
            where = f"{path}.{key}" if path else key
            if key not in rules:
                raise refuse(where[:MAX_NAME], "is not a key that may be in a bundle")
            rules[key](walk, where, item)

    return check


def _names(words: str, rule: Rule = _tensor_name) -> Rule:
    return _keys(dict.fromkeys(words.split(), rule))


def _integers_or_one(walk: ConfigWalk, path: str, value: Any) -> None:
    (_list(_integer) if isinstance(value, list) else _integer)(walk, path, value)


# Options of providers are names of kernels' switches; those that name libraries or files (QNN's backend_path and its
# like) are not here, nor are providers that have them.
_PROVIDER_OPTIONS = _keys(
    {
        "cpu": _table(),
        "CPU": _table(),
        "cuda": _names("enable_cuda_graph enable_skip_layer_norm_strict_mode device_id"),
        "dml": _names("enable_graph_capture device_id"),
        "DML": _names("enable_graph_capture device_id"),
        "webgpu": _names("enableGraphCapture validationMode deviceId"),
        "WebGPU": _names("enableGraphCapture validationMode deviceId"),
    }
)
_SESSION_OPTIONS = _keys(
    {
        "log_id": _text,
        "log_severity_level": _integer,
        "intra_op_num_threads": _integer,
        "inter_op_num_threads": _integer,
        "enable_cpu_mem_arena": _flag,
        "enable_mem_pattern": _flag,
        "graph_optimization_level": _one_of(
            "ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"
        ),
        "provider_options": _list(_PROVIDER_OPTIONS),
        "session.use_device_allocator_for_initializers": _text,
        "session.intra_op.allow_spinning": _text,
        "session.intra_op.spin_duration_us": _text,
        "ep.cuda.fpa_intb_gemm": _text,
    }
)
_DECODER_INPUTS = _names(
    "input_ids inputs_embeds attention_mask position_ids past_key_names past_value_names past_key_scale_names "
    "past_value_scale_names past_names cross_past_key_names cross_past_value_names past_sequence_length "
    "current_sequence_length total_sequence_length encoder_hidden_states encoder_attention_mask "
    "past_key_values_length cache_indirection past_conv_names past_recurrent_names per_layer_inputs"
)
_DECODER_OUTPUTS = _names(
    "logits hidden_states present_key_names present_value_names present_key_scale_names present_value_scale_names "
    "present_names output_cross_qk_names present_conv_names present_recurrent_names"
)
_SHAPE: dict[str, Rule] = {
    "filename": _graph,
    "session_options": _SESSION_OPTIONS,
    "hidden_size": _integer,
    "head_size": _integer,
    "num_attention_heads": _integer,
    "num_hidden_layers": _integer,
    "num_key_value_heads": _integer,
}
_DECODER = _keys(
    {
        **_SHAPE,
        "conv_cache_size": _integer,
        "layer_types": _list(_text),
        "inputs": _DECODER_INPUTS,
        "outputs": _DECODER_OUTPUTS,
        "sliding_window": _table(
            window_size=_integer,
            pad_value=_integer,
            alignment=_text,
            slide_key_value_cache=_flag,
            slide_inputs=_flag,
            cache_slack=_integer,
            layers=_list(_integer),
        ),
        "state_groups": _list(
            _table(kind=_one_of("paged_kv", "fixed_conv", "fixed_recurrent"), layer_ids=_list(_integer))
        ),
    }
)
_ENCODER = _keys(
    {
        **_SHAPE,
        "inputs": _names("input_ids inputs_embeds attention_mask position_ids audio_features input_lengths"),
        "outputs": _names("encoder_hidden_states encoder_outputs cross_present_key_names cross_present_value_names"),
    }
)
_VISION = _keys(
    {
        "filename": _graph,
        "config_filename": _file,
        "adapter_filename": _file,
        "session_options": _SESSION_OPTIONS,
        "spatial_merge_size": _integer,
        "tokens_per_second": _number,
        "patch_size": _integer,
        "num_visual_tokens": _integer,
        "window_size": _integer,
        "num_position_embeddings": _integer,
        "inputs": _names("pixel_values pixel_position_ids image_sizes image_grid_thw attention_mask"),
        "outputs": _names("image_features"),
    }
)
_SPEECH = _keys(
    {
        "filename": _graph,
        "config_filename": _file,
        "adapter_filename": _file,
        "session_options": _SESSION_OPTIONS,
        "inputs": _names("audio_embeds attention_mask audio_sizes audio_projection_mode"),
        "outputs": _names("audio_features"),
    }
)
_EMBEDDING = _keys(
    {
        "filename": _graph,
        "session_options": _SESSION_OPTIONS,
        "inputs": _names("input_ids image_features audio_features"),
        "outputs": _names("inputs_embeds per_layer_inputs"),
    }
)
_MODEL_INTEGERS = (
    "vocab_size context_length pad_token_id bos_token_id decoder_start_token_id sep_token_id image_token_id "
    "audio_token_id boa_token_id video_token_id vision_start_token_id num_mels fft_size hop_length win_length "
    "sample_rate bot_token_id eot_token_id bor_token_id eor_token_id"
)
_SEARCH_INTEGERS = (
    "min_length max_length batch_size num_beams num_return_sequences top_k no_repeat_ngram_size random_seed chunk_size"
)
_SEARCH_NUMBERS = "top_p temperature repetition_penalty length_penalty diversity_penalty"
_SEARCH_FLAGS = "do_sample past_present_share_buffer early_stopping"
CONFIG_RULE = _table(
    model=_keys(
        {
            "type": _text,
            **dict.fromkeys(_MODEL_INTEGERS.split(), _integer),
            "eos_token_id": _integers_or_one,
            "decoder": _DECODER,
            "encoder": _ENCODER,
            "vision": _VISION,
            "speech": _SPEECH,
            "embedding": _EMBEDDING,
        }
    ),
    search=_keys(
        {
            **dict.fromkeys(_SEARCH_INTEGERS.split(), _integer),
            **dict.fromkeys(_SEARCH_NUMBERS.split(), _number),
            **dict.fromkeys(_SEARCH_FLAGS.split(), _flag),
        }
    ),
)
