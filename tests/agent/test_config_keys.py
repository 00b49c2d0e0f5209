"""Every key of the configuration, wrong in every way that its type knows: generated from the types, so that a new key
is tried the day it is made.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from agent.config import AgentConfig, read_config
from contract.errors import ConfigInvalid
from contract.source.access import SourceSettings

BASE = Path("/nowhere")
NOT_THIS = {
    str: [7, 1.5, True, [], {}, ["x"]],
    int: ["7", 1.5, True, [], {}],
    float: ["7", True, [], {}, float("nan")],
    bool: ["true", 1, 0, "yes", [], {}],
    Path: [7, 1.5, True, [], {}, "", "a\0b"],
    list: ["x", 7, {}, [[]], [{}], [7]],
    dict: ["x", 7, [], {"a": []}, {"a": {}}],
}
"""Values of TOML that a key of this type cannot have."""


def leaves(type_: type[Struct] = AgentConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its annotation, tables by their keys."""
    for field in msgspec.structs.fields(type_):
        inner = [part for part in parts(field.type) if isinstance(part, type) and issubclass(part, Struct)]
        if inner:
            yield from leaves(inner[0], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", typing.get_type_hints(type_, include_extras=True)[field.name]


def parts(annotation: Any) -> list[Any]:
    """Members of a union, each with what is noted of the whole; of anything else itself."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [part for each in typing.get_args(annotation) for part in parts(each)]
    inner, *metas = typing.get_args(annotation) or (annotation,)
    if any(isinstance(meta, Meta) for meta in metas) and parts(inner) != [inner]:
        return [part if part is type(None) else typing.Annotated[part, *metas] for part in parts(inner)]
    return [annotation]


def wrong_values(annotation: Any) -> Iterator[Any]:
    for part in parts(annotation):
        metas = [each for each in typing.get_args(part) if isinstance(each, Meta)]
        plain = typing.get_args(part)[0] if metas else part
        if plain is type(None):
            continue
        origin = typing.get_origin(plain)
        if plain is SourceSettings:
            hints = typing.get_type_hints(plain, include_extras=True)
            for name, hint in hints.items():
                yield from ({"url": "https://x", name: value} for value in wrong_values(hint))
            continue
        if origin is typing.Literal:
            yield from ["", "sideways", 7, True, []]
            continue
        yield from NOT_THIS[origin or plain]
        for meta in metas:
            yield from beyond(meta, plain)
        if origin is dict:
            yield from ({"key": value} for value in wrong_values(typing.get_args(plain)[1]))
        if origin is list:
            yield from ([value] for value in wrong_values(typing.get_args(plain)[0]))


def beyond(meta: Meta, plain: Any) -> Iterator[Any]:
    for bound, step in ((meta.ge, -1), (meta.le, 1), (meta.gt, 0), (meta.lt, 0)):
        if bound is not None:
            yield plain(bound + step)
    if plain is float:
        yield from (value for value in (float("inf"), float("-inf")) if meta.le is not None or value < 0)
    if meta.min_length:
        yield "x" * (meta.min_length - 1)
    if meta.max_length is not None:
        yield "x" * (meta.max_length + 1)
    if meta.pattern is not None:
        yield from ("", "\n", "a\n", "a\0b", "x" * 300)


def document(key: str, value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"device": "box"}
    table = found
    *tables, last = key.split(".")
    for name in tables:
        table = table.setdefault(name, {})
    table[last] = value
    return found


KEYS = dict(leaves())


def test_every_table_is_reached() -> None:
    tables = {key.rpartition(".")[0] for key in KEYS}
    assert tables >= {"", "broker", "broker.tls", "install", "worker", "serving", "telemetry.prometheus"}
    assert sum(len(list(wrong_values(annotation))) for annotation in KEYS.values()) > 400


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_value_is_refused_and_its_key_named(key: str) -> None:
    for value in wrong_values(KEYS[key]):
        with pytest.raises(ConfigInvalid) as caught:
            read_config(document(key, value), BASE)
        assert (caught.value.field or "").startswith(key), f"{value!r}: {caught.value.field}: {caught.value.message}"
        assert key.rpartition(".")[2] in caught.value.message
        assert caught.value.message.isprintable()


@pytest.mark.parametrize("key", KEYS)
def test_a_misspelt_key_is_refused_and_the_right_one_shown(key: str) -> None:
    with pytest.raises(ConfigInvalid, match="is not a key of the configuration") as caught:
        read_config(document(f"{key}x", 1), BASE)
    assert f"did you mean {key}?" in caught.value.message
    assert caught.value.field == f"{key}x"


TOML = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=70), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(sorted(KEYS)), value=TOML)
def test_whatever_stands_there_it_is_right_or_refused_in_one_line(key: str, value: Any) -> None:
    try:
        config = read_config(document(key, value), BASE)
    except ConfigInvalid as error:
        assert error.message.isprintable()
    else:
        assert isinstance(config, AgentConfig)
