"""The bundle manifest, schema ``edge-bundle/1`` (``docs/FORMAT.md`` is its reference for other implementers).

A :class:`Manifest` is only a well-formed claim. What may be installed is a
:class:`contract.trust.TrustedManifest`, which only the trust room can make.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from contract import strict_json
from contract.errors import BundleRefused
from contract.identifiers import Digest, check_bundle_name, check_path, check_paths_distinct, check_version
from contract.reasons import Reason

SCHEMA = "edge-bundle/1"
MANIFEST_FILE = "manifest.json"

ADAPTER_SUFFIX = ".onnx_adapter"

MAX_MANIFEST_BYTES = 16 * 2**20
"""A 16 GB bundle of 1 MiB chunks lists 16,384 of them at about 100 bytes each: 1.6 MB. Ten times that."""

MAX_CHUNK_BYTES = 2**20
"""Largest chunk: what a 1 GB box can hold several of while fetching in parallel."""

MAX_FILES = 1024
"""Files in one bundle; a model folder has about a dozen."""

MAX_CANARIES = 16
"""Canary prompts: each costs the device seconds before every activation."""

MAX_CANARY_PICTURE = 2**16
"""Bytes of a picture in a manifest: one that code drew takes some hundred."""

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Bytes = Annotated[int, Meta(ge=0, le=2**53)]
"""A size in bytes. JSON readers in other languages hold integers exactly only up to 2**53."""
Count = Annotated[int, Meta(ge=0, le=2**53)]
Text = Annotated[str, Meta(max_length=4096)]
ShortText = Annotated[str, Meta(max_length=256)]
Role = Literal["model", "tokenizer", "config", "adapter", "evidence"]


class Chunk(Struct, frozen=True, forbid_unknown_fields=True):
    """One contiguous piece of a file; pieces follow each other without gaps."""

    size: Annotated[int, Meta(ge=1, le=MAX_CHUNK_BYTES)]
    sha256: Sha256


class FileEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle. ``path`` is relative POSIX; ``chunks`` cover exactly ``size`` bytes."""

    path: str
    size: Bytes
    sha256: Sha256
    role: Role
    chunks: list[Chunk]


class Model(Struct, frozen=True):
    """What the graph is, as read back from the built graph (not as asked for)."""

    family: ShortText
    architecture: ShortText
    parameters: Count
    precision: Literal["int4", "int8", "fp16", "bf16", "fp32", "mixed"]
    block_size: Annotated[int, Meta(ge=0, le=4096)]
    accuracy_level: Annotated[int, Meta(ge=0, le=4)]
    quantizer: ShortText
    context_length: Annotated[int, Meta(ge=1, le=2**31)]
    vocab_size: Annotated[int, Meta(ge=1, le=2**24)]
    chat_template_sha256: Sha256 | None
    ep: Literal["cpu", "cuda", "dml", "webgpu"]
    capabilities: list[ShortText]


class Requires(Struct, frozen=True, forbid_unknown_fields=True):
    """What a device must have. An unknown key refuses: a requirement that is not understood is not met.

    ``onnxruntime``, ``onnxruntime_genai`` and ``agent`` are lower bounds like ``>=1.31.0``, comma-separated with an
    optional upper bound ``<2``. ``isa_any``: at least one of these must be present; empty means any CPU of ``arch``.
    """

    arch: list[Literal["x86_64", "aarch64"]]
    isa_any: list[ShortText]
    min_ram_bytes: Bytes
    min_disk_bytes: Bytes
    onnxruntime: ShortText
    onnxruntime_genai: ShortText
    agent: ShortText


class Budget(Struct, frozen=True):
    """What was measured on the build host; evidence, not a promise for the device."""

    peak_rss_bytes: Bytes
    load_seconds: Annotated[float, Meta(ge=0)]
    tokens_per_second: Annotated[float, Meta(ge=0)]
    host: ShortText
    threads: Annotated[int, Meta(ge=1, le=1024)]


class Canary(Struct, frozen=True, omit_defaults=True):
    """A prompt, what the build answered, and its mean negative log-likelihood per token in nats.

    The device teacher-forces ``expected_text`` after ``prompt`` and compares the mean NLL within ``tolerance``:
    comparing tokens exactly would fail across instruction sets. ``prompt`` is the rendered text, template included.
    ``stops``: an end token ended the greedy answer, and must on the device, within
    :data:`contract.bundle.canary.STOP_TOKENS` tokens.
    """

    prompt: Text
    expected_text: Text
    mean_nll: Annotated[float, Meta(ge=0)]
    tolerance: Annotated[float, Meta(gt=0)]
    stops: bool = False


class PictureCanary(Struct, frozen=True):
    """The same about a picture, a PNG that was made by code; it stands where ``prompt`` has
    :data:`contract.bundle.canary.PICTURE`, and is looked at with ``detail`` low.
    """

    prompt: Text
    picture: Annotated[bytes, Meta(min_length=1, max_length=MAX_CANARY_PICTURE)]
    expected_text: Text
    mean_nll: Annotated[float, Meta(ge=0)]
    tolerance: Annotated[float, Meta(gt=0)]


class License(Struct, frozen=True):
    """``spdx`` is an SPDX expression or ``unknown``; ``file`` a path in the bundle, if the text is shipped."""

    spdx: ShortText
    file: str | None = None


class GenerationDefaults(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What holds for a request that does not say it; names and ranges are those of requests.

    ``max_tokens_limit`` is no default but a bound: no answer is longer, whatever a request says.
    None: the bundle says nothing, and what the device's documentation states applies. An unknown key refuses: a default
    that is not understood would be another answer than the one that was signed.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Meta(ge=0, le=64)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    max_tokens_limit: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=16)] | None = None


class Behaviour(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Signed defaults of a bundle, which a request may override.

    ``system_prompt`` stands before messages that bring no system message of their own. ``chat_template`` is the path of
    the file in the bundle that replaced the source's template.
    """

    system_prompt: Annotated[str, Meta(min_length=1, max_length=65536)] | None = None
    chat_template: str | None = None
    generation: GenerationDefaults = GenerationDefaults()


class Base(Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle an adapter bundle belongs to, by name, version and manifest digest."""

    name: ShortText
    version: ShortText
    manifest_sha256: Sha256


class Manifest(Struct, frozen=True):
    """A well-formed manifest, not yet trusted. Unknown top-level keys are ignored so that readers can be older."""

    schema: Literal["edge-bundle/1"]
    name: str
    version: str
    security_epoch: Annotated[int, Meta(ge=0, le=2**31)]
    created: ShortText
    files: Annotated[list[FileEntry], Meta(min_length=1, max_length=MAX_FILES)]
    model: Model
    requires: Requires
    budget: Budget
    canary: Annotated[list[Canary], Meta(max_length=MAX_CANARIES)]
    quality: dict[str, Any]
    license: License
    provenance: dict[str, Any]
    base: Base | None = None
    behaviour: Behaviour | None = None
    picture_canary: PictureCanary | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together, without the manifest itself."""
        return sum(entry.size for entry in self.files)

    @property
    def reference(self) -> str:
        """``NAME@VERSION``."""
        return f"{self.name}@{self.version}"

    @property
    def adapter_path(self) -> str | None:
        """The one file of an adapter bundle that the runtime reads; None for a bundle that stands alone."""
        if self.base is None:
            return None
        return next(entry.path for entry in self.files if entry.role == "adapter")


_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def manifest_digest(stored: bytes) -> Digest:
    """The bundle's identity: the SHA-256 of the manifest's bytes as stored, never of a re-serialisation."""
    return Digest(hashlib.sha256(stored).hexdigest())


def parse_manifest(stored: bytes) -> Manifest:
    """Read a manifest strictly and check what the types cannot say.

    Raises:
        BundleRefused: with the reason code of the first fault found.
    """
    document = strict_json.loads(stored, max_bytes=MAX_MANIFEST_BYTES, what="manifest.json")
    _refuse_unknown_requirements(document)
    manifest = strict_json.decode(stored, Manifest, max_bytes=MAX_MANIFEST_BYTES, what="manifest.json")
    check_bundle_name(manifest.name)
    check_version(manifest.version)
    if _CREATED.fullmatch(manifest.created) is None:
        raise BundleRefused(
            Reason.SCHEMA_INVALID, "manifest.json: created must look like 2026-01-31T12:00:00Z", field="created"
        )
    for entry in manifest.files:
        check_path(entry.path)
        if sum(chunk.size for chunk in entry.chunks) != entry.size:
            raise BundleRefused(
                Reason.CHUNKS_INVALID, f"the chunks of {entry.path!r} do not add up to its size", field="chunks"
            )
    # The manifest itself lies beside the files it lists.
    check_paths_distinct([MANIFEST_FILE, *(entry.path for entry in manifest.files)])
    sizes: dict[str, int] = {}
    for entry in manifest.files:
        if sizes.setdefault(entry.sha256, entry.size) != entry.size:
            raise BundleRefused(Reason.CHUNKS_INVALID, f"{entry.path!r} has a digest listed with another size")
    if manifest.base is not None:
        _check_adapter_bundle(manifest, manifest.base)
    if manifest.license.file is not None and all(entry.path != manifest.license.file for entry in manifest.files):
        raise BundleRefused(Reason.FILE_MISSING, "license.file is not among the files", field="license.file")
    template = None if manifest.behaviour is None else manifest.behaviour.chat_template
    if template is not None and all(entry.path != template for entry in manifest.files):
        raise BundleRefused(
            Reason.FILE_MISSING, "behaviour.chat_template is not among the files", field="behaviour.chat_template"
        )
    return manifest


def _check_adapter_bundle(manifest: Manifest, base: Base) -> None:
    """An adapter bundle is one adapter and what was found out about it; the model is its base's."""
    check_bundle_name(base.name)
    check_version(base.version)
    adapters = [entry.path for entry in manifest.files if entry.role == "adapter"]
    others = [entry.path for entry in manifest.files if entry.role not in ("adapter", "evidence")]
    if len(adapters) != 1 or not adapters[0].endswith(ADAPTER_SUFFIX) or others:
        raise BundleRefused(
            Reason.MODEL_INCOMPLETE,
            f"a bundle with a base holds one {ADAPTER_SUFFIX} file and evidence, nothing else",
            field="files",
        )


def _refuse_unknown_requirements(document: Any) -> None:
    requires = document.get("requires") if isinstance(document, dict) else None
    if not isinstance(requires, dict):
        return
    known = {field.name for field in msgspec.structs.fields(Requires)}
    for key in requires:
        if key not in known:
            raise BundleRefused(
                Reason.REQUIRES_UNKNOWN,
                f"the bundle requires {key!r}, which this agent does not understand",
                field=f"requires.{key}",
            )


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes to store: indented JSON, keys in the order of the schema, one final newline."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
