"""JSON from outside: what two readers could understand differently is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contract import strict_json
from contract.errors import BundleRefused
from contract.reasons import Reason


def loads(data: bytes, max_bytes: int = 1 << 20) -> object:
    return strict_json.loads(data, max_bytes=max_bytes, what="the document")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a":1,"a":2}', Reason.DUPLICATE_KEY),
        (b'{"a":{"b":1,"\\u0062":2}}', Reason.DUPLICATE_KEY),
        (b"[NaN]", Reason.NOT_FINITE),
        (b"[-Infinity]", Reason.NOT_FINITE),
        (b"[1e999]", Reason.NOT_FINITE),
        (b"[9223372036854775808]", Reason.NUMBER_RANGE),
        (b"[-9223372036854775809]", Reason.NUMBER_RANGE),
        (b"[" + b"9" * 100_000 + b"]", Reason.NUMBER_RANGE),
        (b'["\xff"]', Reason.NOT_UTF8),
        (b'["\xed\xa0\x80"]', Reason.NOT_UTF8),
        (b'["nice \\ud83d"]', Reason.NOT_UTF8),
        (b'["\\uDE00\\uD83D"]', Reason.NOT_UTF8),
        (b'{"a":{"\\udfff":1}}', Reason.NOT_UTF8),
        (b'{"\\ud800":1,"\\ud800":2}', Reason.DUPLICATE_KEY),
        (b'"\\ud83d\\\\ude00"', Reason.NOT_UTF8),
        (b"{", Reason.NOT_JSON),
        (b"", Reason.NOT_JSON),
        (b"[1] []", Reason.NOT_JSON),
        (b"\xef\xbb\xbf[]", Reason.NOT_JSON),
        (b"[" * 33 + b"]" * 33, Reason.TOO_DEEP),
        (b'{"a":' * 40, Reason.TOO_DEEP),
    ],
)
def test_ambiguous_or_hostile_documents_are_refused_with_their_reason(data: bytes, reason: Reason) -> None:
    with pytest.raises(BundleRefused) as caught:
        loads(data)
    assert caught.value.reason is reason


def test_ten_megabytes_of_nesting_end_quickly_and_by_reason() -> None:
    with pytest.raises(BundleRefused) as caught:
        loads(b"[" * 10_000_000, max_bytes=1 << 24)
    assert caught.value.reason is Reason.TOO_DEEP


def test_a_document_over_its_bound_is_refused_unread() -> None:
    with pytest.raises(BundleRefused) as caught:
        loads(b"[]" + b" " * 100, max_bytes=50)
    assert caught.value.reason is Reason.TOO_LARGE


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    text = "[" * 1000 + '\\"' + "{" * 1000
    assert loads(json.dumps([text]).encode()) == [text]


@given(st.recursive(
    st.text(st.characters(exclude_categories=()), max_size=4) | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=2), inner, max_size=3),
    max_leaves=10,
))  # fmt: skip
@example("\ud800")
@example(["\udfff"])
def test_whatever_is_read_can_be_written_again(value: object) -> None:
    data = json.dumps(value).encode()
    try:
        value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(BundleRefused):
            loads(data)
    else:
        assert msgspec.json.decode(msgspec.json.encode(loads(data))) == value


def test_whole_pairs_and_what_only_looks_like_half_of_one_pass() -> None:
    assert loads(b'["\\ud83d\\ude00", "\\\\ud83d", "\xf0\x9f\x98\x80"]') == ["\U0001f600", "\\ud83d", "\U0001f600"]


def test_the_largest_integers_pass() -> None:
    assert loads(b"[9223372036854775807,-9223372036854775808]") == [2**63 - 1, -(2**63)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_every_ordinary_document_reads_as_written(value: object) -> None:
    assert loads(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_never_anything_else(data: bytes) -> None:
    try:
        loads(data)
    except BundleRefused as refused:
        assert refused.reason in Reason


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    inner: dict[str, list[int]]


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    shape: Shape


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b'{"shape":{"inner":{"a":["x"]}}}', "shape.inner.a[0]"),
        (b'{"shape":{"inner":{},"outer":1}}', "shape.outer"),
        (b'{"shap":1}', "shap"),
        (b'{"shape":{}}', "shape.inner"),
    ],
)
def test_a_wrong_shape_names_the_field(data: bytes, field: str) -> None:
    with pytest.raises(BundleRefused) as caught:
        strict_json.decode(data, Outer, max_bytes=1000, what="the document")
    assert caught.value.reason is Reason.SCHEMA_INVALID
    assert caught.value.field == field


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "data",
    [b'{"a":"' + b'\\"' * 500_000, b'"\\' * 500_000, b'"' * 1_000_001, b'{"a":"' + b'\\"' * 500_000 + b"\\"],
    ids=["quotes", "half escapes", "texts", "lone backslash"],
)
def test_a_text_without_an_end_is_refused_at_once(data: bytes) -> None:
    """Tried again from each of its quotes, this takes hours, and not the seconds of the limit here."""
    with pytest.raises(BundleRefused) as caught:
        strict_json.loads(data, max_bytes=1 << 21, what="it")
    assert caught.value.reason is Reason.NOT_JSON


TYPES = """
from __future__ import annotations
import msgspec
class A0(msgspec.Struct):
    x: int = 0
""" + "".join(
    f"class A{n}(msgspec.Struct):\n    x: int = 0\n    one: A{n - 1} | None = None\n"
    f"    more: dict[str, A{n - 1}] = {{}}\n"
    for n in range(1, 8)
)  # fmt: skip
IN_THREADS = """
import sys, threading, types
from contract import strict_json
sys.setswitchinterval(1e-6)
for turn in range(50):
    module = sys.modules[f"made{turn}"] = types.ModuleType(f"made{turn}")
    exec(SOURCE, module.__dict__)
    together = threading.Barrier(6)
    def read():
        together.wait()
        strict_json.decode(b'{"one": {"one": {}}}', module.A7, max_bytes=100, what="it")
    threads = [threading.Thread(target=read) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
"""


def test_types_may_be_used_for_the_first_time_by_several_threads_at_once() -> None:
    program = f"SOURCE = {TYPES!r}\n{IN_THREADS}"
    assert subprocess.run([sys.executable, "-c", program], timeout=120, check=False).returncode == 0
