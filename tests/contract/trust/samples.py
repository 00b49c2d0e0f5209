"""Tiny, well-formed bundle directories with random contents, and repositories of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

from contract.bundle.chunks import digest_chunks
from contract.bundle.manifest import Budget, Canary, FileEntry, License, Manifest, Model, Requires, encode_manifest
from packager.publish import Expiries, Repository

NOW = datetime(2026, 12, 1, 12, 0, 0, tzinfo=UTC)


def make_manifest(name: str, version: str, files: list[FileEntry], epoch: int = 1) -> Manifest:
    """A well-formed manifest of ``files``."""
    return Manifest(
        schema="edge-bundle/1",
        name=name,
        version=version,
        security_epoch=epoch,
        created="2026-11-20T10:00:00Z",
        files=files,
        model=Model(
            family="llama", architecture="LlamaForCausalLM", parameters=1, precision="int4", block_size=32,
            accuracy_level=4, quantizer="rtn", context_length=128, vocab_size=256, chat_template_sha256=None,
            ep="cpu", capabilities=[],
        ),
        requires=Requires(
            arch=["x86_64", "aarch64"], isa_any=[], min_ram_bytes=1, min_disk_bytes=1, onnxruntime=">=1.20",
            onnxruntime_genai=">=0.10", agent=">=0.1.0",
        ),
        budget=Budget(peak_rss_bytes=1, load_seconds=0.1, tokens_per_second=1.0, host="test", threads=1),
        canary=[Canary(prompt="a", expected_text="b", mean_nll=1.0, tolerance=0.5)],
        quality={},
        license=License(spdx="Apache-2.0"),
        provenance={},
    )  # fmt: skip


def make_bundle(
    path: Path,
    name: str = "demo",
    version: str = "1.0.0",
    *,
    seed: int = 0,
    epoch: int = 1,
    weights: int = 2**20 + 70_000,
) -> Path:
    """A bundle directory that differs with ``seed``, with ``weights`` bytes of weights."""
    source = random.Random(seed)
    contents = {
        "model.onnx": source.randbytes(3000),
        "model.onnx.data": source.randbytes(weights),
        "tokenizer/tokenizer.json": source.randbytes(900),
        "genai_config.json": b"{}",
    }
    files = []
    for relative, data in contents.items():
        file = path / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        sha256, chunks = digest_chunks(file, [len(data) // 2])
        files.append(FileEntry(path=relative, size=len(data), sha256=sha256, role="model", chunks=chunks))
    manifest = make_manifest(name, version, files, epoch)
    (path / "manifest.json").write_bytes(encode_manifest(manifest))
    return path


def make_repository(path: Path, *, now: datetime = NOW, expiries: Expiries | None = None) -> Repository:
    """A repository with unencrypted keys in ``path``/keys, at ``path``/repository, whose clock stands at ``now``."""
    return Repository.init(path / "repository", path / "keys", clock=lambda: now, expiries=expiries)
