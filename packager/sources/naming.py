"""What people name instead of a source, and what they should name: told before anything is fetched or read."""

from __future__ import annotations

import re
from pathlib import Path

from contract.bundle.genai_config import CONFIG_FILE as GENAI_CONFIG
from contract.bundle.manifest import MANIFEST_FILE
from contract.errors import BuildRefused

_HUB = r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)"
_URL = re.compile(_HUB + r"/(?!datasets/|spaces/|collections/)([\w.-]+/[\w.-]+)(?:/(?:tree|resolve|blob)/([^/?#]+))?.*")
_OTHER_URL = re.compile(_HUB + r"/(datasets|spaces|collections)/.*")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://.*|git@.*|(?:www\.)?(?:github\.com|modelscope\.cn|ollama\.com)/.*")
_TAGGED = re.compile(r"([\w.-]+(?:/[\w.-]+)?):([\w.-]+)")
_PINNED = re.compile(r"[\w.-]+/[\w.-]+@[\w./-]+")
_SLASHED = re.compile(r"\w[\w.-]*/[\w.-]+/+")
_WHAT = {"datasets": "a data set", "spaces": "an application", "collections": "a list of models"}

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".7z", ".rar")
UNLINKED = "copy what links lead to (cp -rL), as of the hub's cache, or fetch it again"

PARTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".json", ".jinja", ".model")
"""Files of which a checkpoint has several."""

UNFINISHED = ("*.incomplete", "*.part", "*.aria2", "*.crdownload", "*.download")
"""What programs call a file that they have not fetched to its end."""


def check_naming(text: str) -> None:
    """Refuse what looks like a source and is none.

    Raises:
        BuildRefused: with what to name.
    """
    url = _URL.fullmatch(text)
    if url is not None and url[0].lower().partition("?")[0].endswith(".gguf"):
        raise BuildRefused(f"{text!r} is the address of a GGUF file; fetch it and name the file")
    if url is not None:
        revision = f" --revision {url[2]}" if url[2] not in (None, "main") else ""
        raise BuildRefused(f"{text!r} is an address; name the model as {url[1]}{revision}")
    other = _OTHER_URL.fullmatch(text)
    if other is not None:
        raise BuildRefused(f"{text!r} is {_WHAT[other[1]]} and not a model; name a model as OWNER/MODEL")
    if _SCHEME.fullmatch(text):
        raise BuildRefused(f"{text!r} is an address; fetch it and name the file or directory, or name OWNER/MODEL")
    if not text.strip():
        raise BuildRefused("SOURCE is empty; name a GGUF file, a checkpoint directory or OWNER/MODEL")
    path = Path(text).expanduser()
    if path.is_symlink() and not path.exists():
        raise BuildRefused(f"{text!r} is a link to {str(path.readlink())!r}, which is not there; {UNLINKED}")
    if path.is_dir():
        check_directory(path, text)
    elif path.exists():
        _check_file(path, text)
    elif text.lower().endswith(".gguf"):
        raise BuildRefused(f"there is no file {text!r}; name a GGUF file of this host")
    elif _PINNED.fullmatch(text):
        model, _, revision = text.partition("@")
        raise BuildRefused(f"{text!r} names a revision, as other tools do; name {model} --revision {revision}")
    elif _SLASHED.fullmatch(text):
        raise BuildRefused(
            f"there is no directory {text!r}; if it is a model of the hub, name it as {text.rstrip('/')}"
        )
    elif _TAGGED.fullmatch(text):
        raise BuildRefused(f"{text!r} names a tag, as other tools do; name OWNER/MODEL with --revision, or a GGUF file")


def _check_file(path: Path, text: str) -> None:
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        raise BuildRefused(f"{text!r} is an archive; unpack it and name the directory")
    if name.endswith(".onnx"):
        raise BuildRefused(
            f"{text!r} is a finished graph; name the checkpoint that it was made from, or give a folder of "
            "onnxruntime-genai to edge-packager pack"
        )
    if name.endswith(".edgebundle"):
        raise BuildRefused(f"{text!r} is a bundle already; edge-packager repo import takes it into a repository")
    if name.endswith(PARTS):
        raise BuildRefused(f"{text!r} is one file of a checkpoint; name its directory: {path.parent}")


def check_directory(path: Path, text: str) -> None:
    """Refuse the directory ``path``, which was named as ``text``, if it is not a checkpoint but something like one.

    Raises:
        BuildRefused: with what to name.
    """
    for find in (_finished, _other_kind, _wrong_level):
        found = find(path)
        if found is not None:
            raise BuildRefused(f"{text!r} {found}")


def _finished(path: Path) -> str | None:
    if (path / MANIFEST_FILE).is_file() and (path / GENAI_CONFIG).is_file():
        return "is a bundle already; publish it with edge-packager repo publish"
    if (path / GENAI_CONFIG).is_file():
        return "is a finished folder of onnxruntime-genai; edge-packager pack makes a bundle of it"
    weights = any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
    if not weights and (any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx"))):
        return "holds finished ONNX graphs and no weights; name the checkpoint that they were made from"
    return None


def _other_kind(path: Path) -> str | None:
    if (path / "model_index.json").is_file():
        return "is a pipeline of diffusers, which is no language model"
    if (path / "config.json").is_file():
        return None
    if (path / "adapter_config.json").is_file():
        return (
            f"is an adapter; name the model that it was trained on, and the adapter with --adapter {path} "
            "--merge-adapter"
        )
    if (path / "params.json").is_file() and (any(path.glob("consolidated*")) or (path / "tokenizer.model").is_file()):
        return "has its maker's own layout (params.json); fetch the one of transformers, with config.json"
    return None


def _wrong_level(path: Path) -> str | None:
    if (path / "config.json").is_file():
        return None
    snapshots = sorted((path / "snapshots").glob("*/config.json"), key=lambda file: file.stat().st_mtime)
    if snapshots:
        return f"is an entry of the hub's cache; name its snapshot: {snapshots[-1].parent}"
    files = sorted(path.glob("*.gguf"))
    if files:
        return f"is a directory with GGUF files; name one of them: {files[0]}"
    inner = sorted(path.glob("*/config.json"))
    if inner:
        return f"has no config.json, a directory in it has; name that: {inner[0].parent}"
    if (path.parent / "config.json").is_file():
        return f"has no config.json, the directory above it has; name that: {path.parent}"
    return None


POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html")


def refuse_stand_in(path: Path) -> None:
    """Refuse a file that stands where another belongs: what Git leaves without LFS, a web page, nothing.

    Raises:
        BuildRefused: with how to get the file itself.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(POINTER):
        raise BuildRefused(
            f"{path} is a pointer of Git LFS and not the file itself; run `git lfs pull` in {path.parent}"
        )
    if head.lstrip().lower().startswith(PAGES):
        raise BuildRefused(f"{path} is a web page and not the file itself; fetch it again, logged in if it is gated")
    if not head:
        raise BuildRefused(f"{path} is empty; fetch it again")


def refuse_broken_links(path: Path) -> None:
    """Refuse a directory with links to files that are not there: what is left of a hub's cache that was copied in part.

    Raises:
        BuildRefused: naming one.
    """
    broken = sorted(file.name for file in path.iterdir() if file.is_symlink() and not file.exists())
    if broken:
        raise BuildRefused(f"{path / broken[0]} is a link to a file that is not there; {UNLINKED}")


def find_unfinished(path: Path) -> str | None:
    """The name of a file in ``path``, or in the hub's own folder for them, that was not fetched to its end."""
    for folder in (path, path / ".cache" / "huggingface" / "download"):
        for pattern in UNFINISHED:
            found = sorted(file.name for file in folder.glob(pattern))
            if found:
                return found[0]
    return None
