"""A local Hugging Face directory, looked at before anything heavy is imported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from contract.errors import BuildRefused
from packager.sources.families import check_architecture, family_of
from packager.sources.licenses import UNKNOWN, license_of_card
from packager.sources.naming import find_unfinished, refuse_broken_links, refuse_stand_in
from packager.sources.vocabulary import TOKENIZER_FILE, find_rowless
from packager.sources.weights import count_parameters, refuse_doubled

MAX_JSON_BYTES = 64 * 2**20
"""Largest configuration file read: indexes of models with thousands of shards stay below 10 MB."""

WHOLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (TOKENIZER_FILE, "tokenizer.model", "vocab.json")
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".pt", ".pth", ".ckpt", ".pdparams", ".npz")
"""Of files in which weights lie that are not read out of a checkpoint directory."""
CARD_FILE = "README.md"
TEMPLATE_FILE = "chat_template.jinja"
PLAIN = "name the checkpoint that it was made from"
OLD_QUANTIZATION = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Where earlier tools, and those of other runtimes, say how they quantised."""
QUANTIZED_METHODS = ("gptq", "awq")
QUANTIZED_BITS = (4, 8)
NEED_CODE = ("chatglm", "internlm2", "phi3small")
"""Families that transformers runs only with Python files out of the checkpoint."""


class Quantization(Struct, frozen=True):
    """What a checkpoint's weights were already quantised to: its bits win over whatever is asked for."""

    method: str
    bits: int
    group_size: int


class Pending(Struct, frozen=True):
    """What it takes to have a checkpoint that is yet to be converted or fetched, beside what a build of it takes.

    ``download_bytes`` go to ``download_directory``, ``disk_bytes`` to the packager's cache.
    """

    memory_bytes: int = 0
    disk_bytes: int = 0
    download_bytes: int = 0
    download_directory: Path | None = None

    def then(self, other: Pending) -> Pending:
        """This, and ``other`` once it is done, which fetches nothing."""
        return msgspec.structs.replace(
            self,
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
            disk_bytes=self.disk_bytes + other.disk_bytes,
        )


class Checkpoint(Struct, frozen=True):
    """A directory that the builder can read, and what is known of it. ``quantization`` None: plain weights.

    ``rowless`` are tokens that the tokenizer has and the model does not; the bundle does without them. ``surveyed``: it
    is yet to be converted or fetched, and known by small files alone; ``pending`` is what that takes.

    ``sees``: it is the text model of one that becomes a bundle whole, whose other part has ``vision_parameters``, as
    far as they are known.
    """

    path: Path
    config: dict[str, Any]
    architecture: str
    family: str
    parameters: int
    chat_template: bytes | None
    license_spdx: str
    license_file: Path | None
    quantization: Quantization | None = None
    needs_code: bool = False
    rowless: tuple[str, ...] = ()
    surveyed: bool = False
    pending: Pending = Pending()
    sees: bool = False
    vision_parameters: int = 0


def inspect_checkpoint(path: Path) -> Checkpoint:
    """Look at ``path`` and refuse what cannot become a bundle; of the weights, nothing but their headers is read.

    Raises:
        BuildRefused: config, tokenizer or weights are missing, damaged, or of an architecture that is not known.
    """
    config = read_config(path)
    architecture = known_architecture(path, config)
    _require_tokenizer(path)
    shards = find_shards(path)
    parameters = sum(count_parameters(shard) for shard in shards)
    refuse_doubled(shards)
    return _describe(path, config, architecture, parameters)


def survey_checkpoint(path: Path, config: dict[str, Any], architecture: str, parameters: int) -> Checkpoint:
    """What the small files in ``path`` say of a checkpoint that has to be converted before it can be inspected.

    ``config`` and ``architecture`` are those that it will have, ``parameters`` about how many.

    Raises:
        BuildRefused: as :func:`inspect_checkpoint`, as far as it can be told.
    """
    _require_tokenizer(path)
    found = _describe(path, config, check_architecture(architecture), parameters)
    return msgspec.structs.replace(found, surveyed=True)


def _require_tokenizer(path: Path) -> None:
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise BuildRefused(f"{path} has no tokenizer; put tokenizer.json beside config.json")


def _describe(path: Path, config: dict[str, Any], architecture: str, parameters: int) -> Checkpoint:
    rows = config.get("vocab_size")
    license_file = next((path / name for name in LICENSE_FILES if (path / name).is_file()), None)
    return Checkpoint(
        path=path,
        config=config,
        architecture=architecture,
        family=family_of(architecture),
        parameters=parameters,
        chat_template=read_chat_template(path),
        license_spdx=_read_license(path),
        license_file=license_file,
        quantization=_read_quantization(path, config),
        rowless=find_rowless_tokens(path, rows) if isinstance(rows, int) else (),
        needs_code=family_of(architecture) in NEED_CODE and "auto_map" in config,
    )


def find_rowless_tokens(path: Path, rows: int) -> tuple[str, ...]:
    """Texts of the tokens of ``path/tokenizer.json`` beyond the model's ``rows``; none of them is ever needed.

    Raises:
        BuildRefused: one may be needed, or the file is no tokenizer.
    """
    file = path / TOKENIZER_FILE
    if not file.is_file():
        return ()
    document, settings = read_json(file), {}
    if (path / "tokenizer_config.json").is_file():
        settings = read_json(path / "tokenizer_config.json")
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise BuildRefused(f"{file} is not a tokenizer of the tokenizers library; fetch it again")
    if not isinstance(settings, dict):
        raise BuildRefused(f"{file} or its tokenizer_config.json is not a JSON object; fetch them again")
    try:
        return find_rowless(document, rows, settings, (read_chat_template(path) or b"").decode("utf-8", "replace"))
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise BuildRefused(f"{file} is not a tokenizer of the tokenizers library; fetch it again") from error


def _read_quantization(path: Path, config: dict[str, Any]) -> Quantization | None:
    entry = config.get("quantization_config")
    if entry is None:
        _refuse_other_quantization(path, config)
        return None
    method = entry.get("quant_method") if isinstance(entry, dict) else None
    if method not in QUANTIZED_METHODS:
        raise BuildRefused(
            f"{path} is quantised with {str(method)[:40]!r}; the builder reads {', '.join(QUANTIZED_METHODS)}, "
            "or name the checkpoint that it was made from"
        )
    bits, group = entry.get("bits"), entry.get("group_size")
    if method == "awq" and bits is None and "w_bit" in entry:
        raise BuildRefused(
            f"{path}/config.json has the older keys of AWQ; rename w_bit to bits and q_group_size to group_size in it"
        )
    if isinstance(group, int) and group < 1:
        raise BuildRefused(
            f"{path} is quantised with one scale for each whole column (group size {group}), which cannot be built; "
            "name the checkpoint that it was made from, or one in groups of 32 or 128"
        )
    if isinstance(bits, int) and bits not in QUANTIZED_BITS:
        raise BuildRefused(f"{path} is quantised to {bits} bits, which the builder does not read; {PLAIN}")
    if not isinstance(bits, int) or not isinstance(group, int):
        raise BuildRefused(f"{path}/config.json does not say the bits and the group size of its quantised weights")
    return Quantization(method=str(method), bits=bits, group_size=group)


def _refuse_other_quantization(path: Path, config: dict[str, Any]) -> None:
    """Weights quantised by the word of another file or key than transformers looks at, which takes them for plain."""
    if isinstance(config.get("quantization"), dict):
        raise BuildRefused(f"{path} is quantised for MLX, which the builder does not read; {PLAIN}")
    beside = next((name for name in OLD_QUANTIZATION if (path / name).is_file()), None)
    if beside is not None:
        raise BuildRefused(
            f"{path} is quantised by the word of {beside} alone; put what that says into config.json as its "
            f"'quantization_config', with its quant_method, or {PLAIN}"
        )


def read_config(path: Path) -> dict[str, Any]:
    """The checkpoint's ``config.json``.

    Raises:
        BuildRefused: it is missing or damaged.
    """
    file = path / "config.json"
    if file.is_symlink():
        refuse_broken_links(path)
    if not file.is_file():
        raise BuildRefused(f"{path} has no config.json; name a directory that holds a Hugging Face checkpoint")
    config = read_json(file)
    if not isinstance(config, dict):
        raise BuildRefused(f"{file} is not a JSON object")
    return config


def read_json(file: Path) -> Any:
    """A JSON file of a source, read as transformers reads it: with ``json``, which takes integers of any size.

    ``model_max_length`` of most tokenizers is an integer beyond 64 bits.

    Raises:
        BuildRefused: it is too large, is not JSON, or says a thing twice.
    """
    refuse_stand_in(file)
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise BuildRefused(f"{file} has {size} bytes, more than the {MAX_JSON_BYTES} of any configuration file")
    try:
        return json.loads(read_utf8(file), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # also an integer of more digits than int() takes
        raise BuildRefused(f"{file} is not JSON: {error}; fetch it again") from error


def read_utf8(file: Path) -> str:
    """The text of a small file of a source.

    Raises:
        BuildRefused: it is not UTF-8, or begins with a byte order mark, which transformers does not read.
    """
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BuildRefused(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8, or fetch it again") from error
    if text.startswith("\ufeff"):
        raise BuildRefused(f"{file} begins with a byte order mark; save it as UTF-8 without one, or fetch it again")
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def known_architecture(path: Path, config: dict[str, Any]) -> str:
    """The architecture that ``config`` names.

    Raises:
        BuildRefused: none, or one that cannot be built.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise BuildRefused(f"{path}/config.json names no architecture; add its 'architectures' entry")
    return check_architecture(architectures[0])


def find_shards(path: Path) -> list[Path]:
    """The weight files that transformers reads: all of those that the index names, else ``model.safetensors``.

    Raises:
        BuildRefused: there are none, or some of the index are missing.
    """
    whole, index = path / WHOLE_FILE, path / INDEX_FILE
    if index.is_file():
        return _indexed_shards(path, index)
    if whole.is_file():
        return [whole]
    refuse_broken_links(path)
    found = sorted(file.name for file in path.glob("*.safetensors") if file.is_file())
    unfinished = find_unfinished(path)
    if not found and unfinished is not None:
        raise BuildRefused(f"{path} has no weights yet, {unfinished!r} was not fetched to its end; fetch that again")
    others = sorted(file.name for file in path.iterdir() if file.suffix in OTHER_WEIGHTS)
    if not found and others:
        fix = f"name it: {path / others[0]}" if others[0].endswith(".gguf") else "fetch model.safetensors as well"
        raise BuildRefused(f"{path} has its weights as {others[0]!r} only; {fix}")
    if not found:
        raise BuildRefused(
            f"{path} has no weights; it needs model.safetensors, shards with their index, or pytorch_model.bin"
        )
    if len(found) > 1:
        raise BuildRefused(f"{path} has {len(found)} weight files and no {index.name}; fetch that too")
    if found[0].startswith("consolidated"):
        raise BuildRefused(
            f"{path} has its weights as Mistral's own {found[0]!r} only; fetch model.safetensors as well"
        )
    raise BuildRefused(f"{path} has no model.safetensors; rename {found[0]!r} if that is the model")


def read_weight_map(index: Path) -> dict[str, str]:
    """Weight to file, as an index says; every file is one that could lie beside it.

    Raises:
        BuildRefused: it has no such map, or not the form in which transformers reads it.
    """
    document = read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        raise BuildRefused(f"{index} has no 'weight_map', which names the file of each weight; fetch it again")
    if not weight_map:
        raise BuildRefused(
            f"{index} has an empty 'weight_map', which should name the file of each weight; fetch it again"
        )
    suffix = index.name.removesuffix(".index.json").rpartition(".")[2]
    for weight, name in weight_map.items():
        if not isinstance(name, str):
            raise BuildRefused(f"{index} names no file for {weight[:80]!r}, but {str(name)[:40]!r}; fetch it again")
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise BuildRefused(
                f"{index} names {name[:80]!r}, which is not the name of a file beside it; fetch it again, or move the "
                "weight files there and name them alone"
            )
        if not name.endswith(f".{suffix}"):
            raise BuildRefused(f"{index} names {name[:80]!r}, which is not a .{suffix} file; fetch it again")
    if index.name == INDEX_FILE and not isinstance(document.get("metadata"), dict):
        raise BuildRefused(
            f"{index} has no 'metadata' object, without which transformers does not read it; fetch it again, or add "
            '"metadata": {} to it'
        )
    return weight_map


def list_indexed(index: Path) -> list[str]:
    """The files that an index names, all of which lie beside it.

    Raises:
        BuildRefused: some do not, or it is no index.
    """
    names = sorted(set(read_weight_map(index).values()))
    refuse_broken_links(index.parent)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise BuildRefused(
            f"{index.parent} lacks {len(missing)} of {len(names)} weight files, first {missing[0]!r}; "
            f"fetch them beside {index.name}"
        )
    return names


def _indexed_shards(path: Path, index: Path) -> list[Path]:
    names = list_indexed(index)
    if (path / WHOLE_FILE).is_file() and names != [WHOLE_FILE]:
        raise BuildRefused(f"{path} holds {WHOLE_FILE} and an index of other files; remove one of the two")
    return [path / name for name in names]


def read_chat_template(path: Path) -> bytes | None:
    """The chat template's bytes, from its own file or from tokenizer_config.json; None for base models."""
    own = path / TEMPLATE_FILE
    if own.is_file():
        return own.read_bytes()
    config = path / "tokenizer_config.json"
    if config.is_file():
        template = read_json(config).get("chat_template")
        if isinstance(template, str):
            return template.encode()
        if isinstance(template, list):
            for entry in template:
                if isinstance(entry, dict) and entry.get("name") == "default":
                    return str(entry.get("template", "")).encode()
    return None


def _read_license(path: Path) -> str:
    card = path / CARD_FILE
    return license_of_card(card.read_text("utf-8", "replace")[:65536]) if card.is_file() else UNKNOWN


def digest_directory(path: Path) -> str:
    """One SHA-256 over the names and contents of the files in ``path`` (not its subdirectories)."""
    whole = hashlib.sha256()
    for file in sorted(entry for entry in path.iterdir() if entry.is_file()):
        with file.open("rb") as handle:
            whole.update(f"{file.name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
