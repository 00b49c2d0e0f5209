"""The content policy: the configuration and every graph are checked before the runtime sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from contract.bundle.genai_config import CONFIG_FILE, MAX_CONFIG_BYTES, read_genai_config
from contract.bundle.manifest import Manifest
from contract.errors import BundleRefused, StoreBroken
from contract.onnx.rules import check_graph
from contract.onnx.wire import read_graph_file
from contract.reasons import Reason

GRAPH_SUFFIX = ".onnx"


def check_contents(manifest: Manifest, locate: Callable[[str], Path]) -> None:
    """Refuse what could make the runtime load code or files from elsewhere.

    ``locate`` gives the path of a bundle's file on this disk. A bundle for another bundle (``base``) brings no
    configuration of its own.

    Raises:
        BundleRefused: MODEL_INCOMPLETE, CONFIG_NOT_ALLOWED, GRAPH_INVALID, UNSAFE_PATH.
        StoreBroken: a file cannot be read.
    """
    sizes = {entry.path: entry.size for entry in manifest.files}
    if CONFIG_FILE in sizes:
        if sizes[CONFIG_FILE] > MAX_CONFIG_BYTES:
            raise BundleRefused(Reason.TOO_LARGE, f"{CONFIG_FILE} is too large", field=CONFIG_FILE)
        try:
            data = locate(CONFIG_FILE).read_bytes()
        except OSError as error:
            raise StoreBroken(f"{CONFIG_FILE} cannot be read: {error.strerror}") from error
        read_genai_config(data, sizes)
    elif manifest.base is None:
        raise BundleRefused(Reason.MODEL_INCOMPLETE, f"the bundle has no {CONFIG_FILE}", field=CONFIG_FILE)
    for path in sizes:
        if path.endswith(GRAPH_SUFFIX):
            check_graph(read_graph_file(locate(path)), path, sizes)
