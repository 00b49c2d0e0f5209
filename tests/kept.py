"""What takes minutes to build, built once and kept below ``EDGE_CACHE`` until what decides its bytes changes."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("EDGE_CACHE") or ROOT / ".cache").resolve()
SMOLLM2 = "smollm2-bundle"
"""The real bundle, ``smollm2@1.0.0``, that tests and demonstrations share; built with ``--quantizer rtn``."""

# What decides the bytes of a bundle: editing anything else keeps the cached ones.
SOURCES = (
    "packager/**/*.py", "packager/quantize/passages.txt", "contract/bundle/manifest.py", "contract/bundle/chunks.py",
    "contract/bundle/canary.py", "contract/bundle/genai_*.py", "contract/bundle/adapter_*.py", "contract/onnx/*.py",
    "contract/bundle/picture_families.py", "tests/tiny.py", "tests/lora.py",
)  # fmt: skip
KEEP_SECONDS = 3600
UNRELATED = (
    "packager/publish",
    "packager/commands",
    "packager/watch",
    "packager/cli.py",
)


def _key(sources: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    files = sorted({path for pattern in sources for path in ROOT.glob(pattern)})
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(UNRELATED):
            digest.update(name.encode() + b"\0" + path.read_bytes())
    digest.update(made_with().encode())
    return digest.hexdigest()[:16]


def made_with() -> str:
    """The versions that decide the bytes of a bundle; ``tests.arm.emulated`` hands its machine's on."""
    packages = ("onnxruntime-genai", "onnxruntime", "transformers", "torch")
    return os.environ.get("EDGE_MADE_WITH") or "".join(map(importlib.metadata.version, packages))


def kept(name: str, make: Callable[[Path], object], sources: tuple[str, ...] = SOURCES, *, cache: Path = CACHE) -> Path:
    """``make(directory)`` once for each state of ``sources``, whoever runs at the same time; the directory."""
    shelf = cache / "test-bundles"
    shelf.mkdir(parents=True, exist_ok=True)
    with (shelf / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        directory = shelf / f"{name}-{_key(sources)}"
        if not directory.is_dir():
            for old in shelf.glob(f"{name}-*"):
                # Another run may be reading one that the sources have just left behind.
                if time.time() - old.stat().st_mtime > KEEP_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
            staging = shelf / f".{name}.partial"
            shutil.rmtree(staging, ignore_errors=True)
            make(staging)
            staging.rename(directory)
    return directory
