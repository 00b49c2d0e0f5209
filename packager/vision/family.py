"""What each family of models that see does its own way; everything else here asks no more than this.

A family is one object, in the table of :mod:`packager.vision.families`. Its graphs, its way of preparing a picture and
its reference are its own; which precision its encoder gets, how that is judged, evidence and canary are common to all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from packager.sources.weights import StoredTensor

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]
"""``[height, width, 3]``, red first."""

Tensors = dict[str, Array]
Progress = Callable[[int, int], None]

EncoderType = Literal["float", "fp16", "int8"]
"""Of the weights of an encoder's and its projection's products; the rest of it is fp32."""

EMBEDDING_FILE = "embedding.onnx"
ENCODER_FILE = "vision.onnx"
PROCESSOR_FILE = "processor_config.json"


class GraphTypes(NamedTuple):
    """How weights are stored: those of the ``encoder``'s products, and the ``embedding``'s table (``float``, ``int8``,
    ``int4``).
    """

    encoder: EncoderType
    embedding: str


class Written(NamedTuple):
    """What the runtime is told: its ``processor`` configuration, and the ``sections`` of ``model`` in genai_config.json
    (``type``, ``vision``, ``embedding`` and token ids).
    """

    processor: dict[str, Any]
    sections: dict[str, Any]


class Prepared(NamedTuple):
    """One picture as the graphs read it: ``inputs`` of the encoder by their names, the ``ids`` that stand for it in a
    prompt as the runtime's processor writes them, and how many of these are ``features``.
    """

    inputs: Tensors
    ids: list[int]
    features: int


def normalise(picture: Pixels, mean: Sequence[float], deviation: Sequence[float]) -> npt.NDArray[np.float32]:
    """``picture`` as every processor here has it before it is laid out: ``[height, width, 3]``."""
    values = (picture.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    return values.astype(np.float32, copy=False)


class VisionSource(Protocol):
    """The reference with a checkpoint's weights, in fp32: transformers' own class, or what the family's code does."""

    def features(self, inputs: Tensors) -> Array:
        """``[tokens, width]``, as the graph's ``image_features``."""
        ...

    def prompt(self, ids: Sequence[int], inputs: Tensors) -> tuple[Any, dict[str, Any]]:
        """A model of transformers', and with which arguments it reads the prompt ``ids``; from then on it is given one
        token and ``past_key_values`` at a time.
        """
        ...


class VisionFamily(Protocol):
    """See the module. ``path`` is always the directory of the whole checkpoint."""

    def check(self, path: Path, tensors: Iterable[StoredTensor]) -> None:
        """Refuse what cannot be built, by small files and headers alone; ``tensors`` are all of the checkpoint.

        Raises:
            BuildRefused: naming file and field.
        """
        ...

    def write(self, path: Path, out: Path, types: GraphTypes, on_progress: Progress) -> Written:
        """Write :data:`ENCODER_FILE` and :data:`EMBEDDING_FILE` into ``out``, beside the decoder, with as little of the
        weights in memory at a time as can be.
        """
        ...

    def side(self, path: Path) -> int:
        """Pixels along a side of the square pictures that a build asks about: a size that becomes no more tokens
        than it must.
        """
        ...

    def prepare(self, path: Path, picture: Pixels) -> Prepared:
        """``picture`` as the family's own processor has it, in numbers that do not depend on versions of libraries."""
        ...

    def open_source(self, path: Path, text: Path | None) -> VisionSource:
        """The reference; ``text`` is the directory of the text model, None where only features are asked for."""
        ...
