"""Pictures for onnxruntime-genai: from files to the tokens that stand for them and the tensors that the graphs read.

The processor that comes with a model wants prompt and pictures in one; but it would turn control tokens that a user
wrote into real ones. So it is given nothing but the places of the pictures, and the tokens it makes of those go where
the pictures stand in a prompt that was encoded as every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.engine.pixels import redraw
from agent.engine.tokenizing import Tokenizing
from contract.errors import RequestInvalid

PLACES = {
    "phi3v": "<|image_{}|>",
    "phi4mm": "<|image_{}|>",
    "gemma3": "<start_of_image>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "mistral3": "[IMG]",
}
"""How each kind of model (``model.type`` in genai_config.json) is told where a picture stands, as onnxruntime-genai
0.18's processors look for it. Kinds that are not here take no pictures."""


class Seen:
    """Some pictures: ``tokens`` of each, and ``tensors`` of them all (``NamedTensors``)."""

    def __init__(self, tokens: list[list[int]], tensors: Any) -> None:
        self.tokens = tokens
        self._tensors = tensors

    def inputs(self, prompt: Sequence[int]) -> Any:
        """What a Generator's ``set_inputs`` takes, with the whole ``prompt``."""
        self._tensors["input_ids"] = np.array([prompt], dtype=np.int32)
        return self._tensors


class Sight:
    """The eyes of one model of a kind in :data:`PLACES`."""

    def __init__(self, og: Any, model: Any, kind: str, tokenizing: Tokenizing) -> None:
        self._og = og
        self._place = PLACES[kind]
        self._processor = model.create_multimodal_processor()
        self._tokenizing = tokenizing

    def read(self, pictures: Sequence[bytes]) -> Seen:
        """Decode ``pictures`` (PNG or JPEG files of clients) and make of them what the model reads.

        Raises:
            RequestInvalid: one cannot be read, or the model's processor refuses them.
        """
        drawn = [redraw(picture) for picture in pictures]
        try:
            tensors = self._process(drawn)
            # The processor says where one picture's tokens end and the next one's begin only by being asked for each.
            alone = [tensors] if len(drawn) == 1 else [self._process([picture]) for picture in drawn]
            tokens = [self._tokens(found, number) for number, found in enumerate(alone, 1)]
        except Exception as error:
            raise cannot_take(error) from error
        return Seen(tokens, tensors)

    def _process(self, drawn: list[bytes]) -> Any:
        places = "".join(self._place.format(number) for number in range(1, len(drawn) + 1))
        return self._processor(places, images=self._og.Images.open_bytes(*drawn))

    def _tokens(self, alone: Any, number: int) -> list[int]:
        """Of the picture with this number, which stood ``alone``: below zero, tokens tell the picture's number."""
        ids = [int(token) for token in alone["input_ids"].as_numpy().reshape(-1)]
        return [-number if token < 0 else token for token in self._tokenizing.without_beginning(ids)]


def cannot_take(error: Exception) -> RequestInvalid:
    """What the client is told when the runtime refuses its pictures: the beginning of what it says."""
    text = " ".join(str(error).split())[:160]
    return RequestInvalid(f"the model cannot take these pictures: {text}", field="messages")
