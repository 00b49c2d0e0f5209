"""What people name instead of a source, and what they should name: told before anything is fetched or read."""

from __future__ import annotations

import re
from pathlib import Path

from contract.errors import BuildRefused

_URL = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/(?:tree|resolve|blob)/([^/?#]+))?.*"
)


def check_naming(text: str) -> None:
    """Refuse what looks like a source and is none.

    Raises:
        BuildRefused: with what to name.
    """
    url = _URL.fullmatch(text)
    if url is not None:
        revision = f" --revision {url[2]}" if url[2] not in (None, "main") else ""
        raise BuildRefused(f"{text!r} is an address; name the model as {url[1]}{revision}")
    path = Path(text).expanduser()
    if text.endswith(".gguf") and not path.exists():
        raise BuildRefused(f"there is no file {text!r}; name a GGUF file of this host")
    if not path.is_dir() or (path / "config.json").is_file():
        return
    if (path / "adapter_config.json").is_file():
        raise BuildRefused(
            f"{text!r} is an adapter; name the model that it was trained on, and the adapter with --adapter {text} "
            "--merge-adapter"
        )
    snapshots = sorted((path / "snapshots").glob("*/config.json"))
    if snapshots:
        raise BuildRefused(f"{text!r} is an entry of the hub's cache; name its snapshot: {snapshots[-1].parent}")
    files = sorted(path.glob("*.gguf"))
    if files:
        raise BuildRefused(f"{text!r} is a directory with GGUF files; name one of them: {files[0]}")
