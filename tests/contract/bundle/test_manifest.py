"""The manifest reader: a well-formed claim or a reason code."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.bundle.manifest import MAX_CHUNK_BYTES, encode_manifest, manifest_digest, parse_manifest
from contract.errors import BundleRefused
from contract.reasons import Reason

EMPTY = hashlib.sha256(b"").hexdigest()
WELL_FORMED: dict[str, Any] = {
    "schema": "edge-bundle/1",
    "name": "tiny",
    "version": "1.0.0",
    "security_epoch": 1,
    "created": "2026-11-22T00:00:00Z",
    "files": [
        {"path": "model.onnx", "size": 3, "sha256": "a" * 64, "role": "model",
         "chunks": [{"size": 1, "sha256": "b" * 64}, {"size": 2, "sha256": "c" * 64}]},
        {"path": "evidence/empty", "size": 0, "sha256": EMPTY, "role": "evidence", "chunks": []},
    ],
    "model": {"family": "llama", "architecture": "LlamaForCausalLM", "parameters": 1, "precision": "int4",
              "block_size": 32, "accuracy_level": 4, "quantizer": "rtn", "context_length": 64, "vocab_size": 10,
              "chat_template_sha256": None, "ep": "cpu", "capabilities": ["chat"]},
    "requires": {"arch": ["x86_64"], "isa_any": [], "min_ram_bytes": 1, "min_disk_bytes": 1,
                 "onnxruntime": ">=1.31.0", "onnxruntime_genai": ">=0.18.0", "agent": ">=0.1.0"},
    "budget": {"peak_rss_bytes": 1, "load_seconds": 0.1, "tokens_per_second": 1.0, "host": "x", "threads": 2},
    "canary": [{"prompt": "a", "expected_text": "b", "mean_nll": 0.5, "tolerance": 0.1}],
    "quality": {}, "license": {"spdx": "Apache-2.0", "file": None}, "provenance": {}, "base": None,
}  # fmt: skip


def changed(path: str, value: Any) -> bytes:
    document = deepcopy(WELL_FORMED)
    *parents, last = path.split(".")
    place: Any = document
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    if value is ...:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return json.dumps(document).encode()


def test_a_well_formed_manifest_survives_writing_and_reading() -> None:
    manifest = parse_manifest(json.dumps(WELL_FORMED).encode())
    stored = encode_manifest(manifest)
    assert parse_manifest(stored) == manifest
    assert manifest.total_bytes == 3
    assert manifest.reference == "tiny@1.0.0"
    assert stored.endswith(b"}\n")


def test_the_identity_is_that_of_the_bytes_as_stored() -> None:
    stored = json.dumps(WELL_FORMED).encode()
    assert manifest_digest(stored) == hashlib.sha256(stored).hexdigest()
    assert manifest_digest(stored) != manifest_digest(encode_manifest(parse_manifest(stored)))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("schema", "edge-bundle/2", Reason.SCHEMA_INVALID),
        ("name", "../evil", Reason.UNSAFE_NAME),
        ("version", "1.0", Reason.UNSAFE_NAME),
        ("security_epoch", -1, Reason.SCHEMA_INVALID),
        ("security_epoch", 2**63, Reason.NUMBER_RANGE),
        ("created", "yesterday", Reason.SCHEMA_INVALID),
        ("files", [], Reason.SCHEMA_INVALID),
        ("files.0.path", "../model.onnx", Reason.UNSAFE_PATH),
        ("files.0.path", "/model.onnx", Reason.UNSAFE_PATH),
        ("files.0.path", "Manifest.JSON", Reason.UNSAFE_PATH),
        ("files.0.path", "Evidence/EMPTY", Reason.UNSAFE_PATH),
        ("files.0.size", 4, Reason.CHUNKS_INVALID),
        ("files.0.size", -3, Reason.SCHEMA_INVALID),
        ("files.0.size", 2**54, Reason.SCHEMA_INVALID),
        ("files.0.sha256", ..., Reason.SCHEMA_INVALID),
        ("files.0.sha256", "", Reason.SCHEMA_INVALID),
        ("files.0.sha256", "A" * 64, Reason.SCHEMA_INVALID),
        ("files.0.sha256", "md5:" + "a" * 60, Reason.SCHEMA_INVALID),
        ("files.0.chunks", [], Reason.CHUNKS_INVALID),
        ("files.0.chunks.0.sha256", ..., Reason.SCHEMA_INVALID),
        ("files.0.chunks.0.size", 0, Reason.SCHEMA_INVALID),
        ("files.0.chunks.0.size", MAX_CHUNK_BYTES + 1, Reason.SCHEMA_INVALID),
        ("files.0.role", "plugin", Reason.SCHEMA_INVALID),
        ("files.0.executable", True, Reason.SCHEMA_INVALID),
        ("files.1.sha256", "a" * 64, Reason.CHUNKS_INVALID),
        ("requires.gpu", "yes", Reason.REQUIRES_UNKNOWN),
        ("requires.arch", ..., Reason.SCHEMA_INVALID),
        ("requires.arch", ["riscv64"], Reason.SCHEMA_INVALID),
        ("canary.0.tolerance", 0, Reason.SCHEMA_INVALID),
        ("license.file", "LICENSE", Reason.FILE_MISSING),
        ("base", {"name": "x"}, Reason.SCHEMA_INVALID),
    ],
)
def test_every_fault_is_refused_with_its_reason(path: str, value: Any, reason: Reason) -> None:
    with pytest.raises(BundleRefused) as caught:
        parse_manifest(changed(path, value))
    assert caught.value.reason is reason


def test_unknown_keys_outside_requires_are_ignored_so_that_readers_can_be_older() -> None:
    assert parse_manifest(changed("model.colour", "blue")).model.family == "llama"
    assert parse_manifest(changed("comment", "hello")).name == "tiny"


@given(st.data())
def test_any_changed_byte_is_read_or_refused_never_anything_else(data: st.DataObject) -> None:
    stored = bytearray(json.dumps(WELL_FORMED).encode())
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    try:
        manifest = parse_manifest(bytes(stored))
    except BundleRefused as refused:
        assert refused.reason in Reason
    else:
        assert manifest.total_bytes >= 0


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"chat_template": "none.jinja"}, Reason.FILE_MISSING),
        ({"chat_template": "../model.onnx"}, Reason.FILE_MISSING),
        ({"generation": {"temprature": 1}}, Reason.SCHEMA_INVALID),
        ({"generation": {"temperature": 3}}, Reason.SCHEMA_INVALID),
        ({"tools": []}, Reason.SCHEMA_INVALID),
        ({"system_prompt": ""}, Reason.SCHEMA_INVALID),
    ],
)
def test_a_behaviour_that_is_not_understood_is_refused(behaviour: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(BundleRefused) as refused:
        parse_manifest(json.dumps({**WELL_FORMED, "behaviour": behaviour}).encode())
    assert refused.value.reason is reason


def test_a_behaviour_survives_writing_and_reading() -> None:
    behaviour = {"system_prompt": "Be brief.", "generation": {"temperature": 0.5, "stop": ["END"]}}
    manifest = parse_manifest(json.dumps({**WELL_FORMED, "behaviour": behaviour}).encode())
    assert manifest.behaviour is not None
    assert json.loads(encode_manifest(manifest))["behaviour"] == behaviour
