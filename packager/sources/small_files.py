"""The small files that are published beside weights: of which type the fields are that anything here reads.

People edit them by hand and programs write them with other types than transformers reads, which then fails with the
words of whatever line met them first, or silently takes something else. Here each file has a type, and what does not
fit is one sentence with the file, the field and what to do. Fields that are not named here may be anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused
from packager.sources.checkpoint import TEMPLATE_FILE, read_json, read_utf8
from packager.sources.naming import refuse_stand_in


class AddedToken(Struct):
    """A token with what is said of it."""

    content: str


class NamedTemplate(Struct):
    """One of several chat templates."""

    name: str
    template: str


Token = str | AddedToken | None
Number = int | float | None


class TokenizerConfig(Struct):
    """tokenizer_config.json."""

    chat_template: str | list[NamedTemplate] | dict[str, str] | None = None
    model_max_length: Number = None
    tokenizer_class: str | None = None
    added_tokens_decoder: dict[str, AddedToken] | None = None
    additional_special_tokens: list[Token] | None = None
    extra_special_tokens: list[Token] | dict[str, Token] | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    bos_token: Token = None
    eos_token: Token = None
    unk_token: Token = None
    pad_token: Token = None
    cls_token: Token = None
    sep_token: Token = None
    mask_token: Token = None


class SpecialTokens(Struct):
    """special_tokens_map.json."""

    additional_special_tokens: list[Token] | None = None
    extra_special_tokens: list[Token] | dict[str, Token] | None = None
    bos_token: Token = None
    eos_token: Token = None
    unk_token: Token = None
    pad_token: Token = None
    cls_token: Token = None
    sep_token: Token = None
    mask_token: Token = None


Ids = int | list[int] | None


class GenerationConfig(Struct):
    """generation_config.json; what values its settings may have is for :mod:`packager.build.behaviour`."""

    eos_token_id: Ids = None
    bos_token_id: Ids = None
    pad_token_id: Ids = None
    do_sample: bool | None = None
    temperature: Number = None
    top_p: Number = None
    top_k: Number = None
    min_p: Number = None
    repetition_penalty: Number = None
    no_repeat_ngram_size: int | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    stop_strings: str | list[str] | None = None


class ModelConfig(Struct):
    """config.json, as far as something else than transformers reads it."""

    eos_token_id: Ids = None
    bos_token_id: Ids = None
    pad_token_id: Ids = None
    tie_word_embeddings: bool | None = None
    torch_dtype: str | None = None
    dtype: str | dict[str, str] | None = None
    quantization_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None


class AdapterConfig(Struct):
    """adapter_config.json."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    r: int | None = None
    lora_alpha: Number = None
    target_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, int | float] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    fan_in_fan_out: bool | None = None
    bias: str | None = None
    init_lora_weights: bool | str | None = None


FILES: dict[str, Any] = {
    "config.json": ModelConfig,
    "tokenizer_config.json": TokenizerConfig,
    "special_tokens_map.json": SpecialTokens,
    "added_tokens.json": dict[str, int],
    "generation_config.json": GenerationConfig,
    "adapter_config.json": AdapterConfig,
}

_KINDS = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "an object", "null": "null",
}  # fmt: skip


def refuse_wrong_types(path: Path) -> None:
    """Refuse a field of one of :data:`FILES` in ``path`` that is of another type than it is read as, or a template that
    is no text.

    Raises:
        BuildRefused: naming file and field.
    """
    if (path / TEMPLATE_FILE).is_file():
        refuse_stand_in(path / TEMPLATE_FILE)
        read_utf8(path / TEMPLATE_FILE)
    for name, type_ in FILES.items():
        file = path / name
        if not file.is_file():
            continue
        document = read_json(file)
        if not isinstance(document, dict):
            raise BuildRefused(f"{file} is not a JSON object; fetch it again")
        try:
            msgspec.convert(document, type_)
        except msgspec.ValidationError as error:
            raise BuildRefused(f"{file}: {_explain(str(error))}; correct it there, or fetch the file again") from error


def _explain(words: str) -> str:
    """What is wrong, out of msgspec's words: Expected `str | null`, got `int` - at `$.chat_template`."""
    fault, _, at = words.partition(" - at `$")
    field = at.rstrip("`").removeprefix(".").replace("[...]", "[…]")
    parts = fault.split("`")
    if fault.startswith("Object missing required field"):
        return f"{field!r} lacks {parts[1]!r}"
    expected, got = parts[1].split(" | "), parts[3]
    if {"int", "float"} <= set(expected):
        expected.remove("int")
    kinds = [_KINDS[kind] for kind in expected]
    wanted = kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    return f"{field!r} is {_KINDS[got]} where {wanted} belongs"
