"""The part of a checkpoint that sees, where both parts become a bundle; the text model is taken out as it is alone."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from packager.sources.headers import WeightHeaders, read_headers
from packager.sources.pickled import convert_pickled, find_pickled
from packager.sources.text_only import find_vision, name_of_text
from packager.vision.families import vision_family


class VisionPart(Struct, frozen=True):
    """Of what ``architecture`` the whole is; its ``directory``, where its weights are safetensors."""

    directory: Path
    architecture: str
    parameters: int


def open_vision_part(path: Path, digest: str, cache: Path, log: Path) -> VisionPart:
    """That of the checkpoint in ``path`` (whose files have ``digest``).

    Raises:
        BuildRefused: weights or configurations are not those of one that can be built.
    """
    architecture = find_vision(path)
    assert architecture is not None  # what is not known to see is not opened so
    pickled = find_pickled(path)
    directory = convert_pickled(path, pickled, digest, cache, log) if pickled else path
    headers = read_headers(directory)
    vision_family(directory).check(directory, headers.tensors)
    return VisionPart(directory, architecture, count_vision(headers))


def count_vision(headers: WeightHeaders) -> int:
    """Parameters of the part that sees."""
    return headers.parameters - headers.rename(name_of_text).parameters
