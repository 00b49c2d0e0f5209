"""Pictures for onnxruntime-genai: from files to the tokens that stand for them and the tensors that the graphs read.

The processor that comes with a model wants prompt and pictures in one; but it would turn control tokens that a user
wrote into real ones. So it is given nothing but the places of the pictures, and the tokens it makes of those go where
the pictures stand in a prompt that was encoded as every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.engine.image_decode import MAX_PIXELS, decode_image
from agent.engine.tokenizing import Tokenizing
from contract.bundle.picture_families import LOW_SIDE, PICTURE_FAMILIES, Size, phi3v_cost
from contract.errors import RequestInvalid

PHI3V_WHOLE = phi3v_cost(Size(LOW_SIDE, LOW_SIDE, low=True)).tokens
"""Of a picture of one crop: that, the whole, which is the same, and separators."""


class ImageInputs:
    """Some pictures: ``tokens`` of each, and ``tensors`` of them all (``NamedTensors``)."""

    def __init__(self, tokens: list[list[int]], tensors: Any) -> None:
        self.tokens = tokens
        self._tensors = tensors

    def inputs(self, prompt: Sequence[int]) -> Any:
        """What a Generator's ``set_inputs`` takes, with the whole ``prompt``."""
        self._tensors["input_ids"] = np.array([prompt], dtype=np.int32)
        return self._tensors


class ImagePreprocessor:
    """The pictures of one request on their way: each :meth:`advance` reads one, so that others are not kept waiting."""

    def __init__(self, sight: Vision, pictures: Sequence[bytes], context_length: int) -> None:
        self._sight = sight
        self._left = list(pictures)
        self._context = context_length
        self._drawn: list[bytes] = []
        self._tokens: list[list[int]] = []
        self._alone: Any = None
        self._pixels = MAX_PIXELS

    def advance(self) -> ImageInputs | None:
        """Read the next picture; after the last one, what the model reads of all.

        Raises:
            RequestInvalid: one cannot be read, the model's processor refuses it, or they do not fit the context.
            MemoryError: there is none left.
        """
        number = len(self._drawn) + 1
        try:
            drawn, pixels = decode_image(self._left.pop(0), self._pixels)
        except RequestInvalid as refused:
            raise RequestInvalid(f"picture {number}: {refused.message}", field=refused.field) from refused
        self._pixels -= pixels
        self._drawn.append(drawn)
        self._alone = self._sight.process([drawn])
        self._tokens.append(self._sight.tokens(self._alone, number))
        if (total := sum(map(len, self._tokens))) > self._context:
            text = f"{number} pictures come to {total} tokens and the context has {self._context}: send fewer"
            raise RequestInvalid(text, field="messages")
        if self._left:
            return None
        # What the processor makes of several is no sum of what it makes of each.
        return ImageInputs(self._tokens, self._alone if number == 1 else self._sight.process(self._drawn))


class Vision:
    """The eyes of one model of a kind in :data:`PICTURE_FAMILIES`."""

    def __init__(self, og: Any, model: Any, kind: str, tokenizing: Tokenizing) -> None:
        self._og = og
        self._family = PICTURE_FAMILIES[kind]
        self._processor = model.create_multimodal_processor()
        self._tokenizing = tokenizing

    def process(self, drawn: Sequence[bytes]) -> Any:
        """The model's own processor (``NamedTensors``) on pictures that were drawn here.

        Raises:
            RequestInvalid: it refuses them.
            MemoryError: there is none left.
        """
        text = "".join(self._family.placeholder.format(number) for number in range(1, len(drawn) + 1))
        try:
            return self._processor(text, images=self._og.Images.open_bytes(*drawn))
        except Exception as error:
            raise cannot_take(error) from error

    def glance(self, picture: bytes) -> ImageInputs:
        """``picture`` looked at as a whole where the kind of model can, as canaries are.

        Raises:
            RequestInvalid: it cannot be read, or the model's processor refuses it.
        """
        whole = self._family.low == "whole"
        tensors = self.process([decode_image(picture, side=self._family.low_side, square=whole)[0]])
        tokens = self.tokens(tensors, 1)
        if whole:
            one = tensors["pixel_values"].as_numpy()[:, [0, 0]]
            tensors["pixel_values"] = np.ascontiguousarray(one)
            tensors["image_sizes"] = np.array([one.shape[-2:]], np.int64)
            tensors["num_image_tokens"] = np.array([[PHI3V_WHOLE]], np.int64)
            tokens = [-1] * PHI3V_WHOLE
        return ImageInputs([tokens], tensors)

    def tokens(self, alone: Any, number: int) -> list[int]:
        """Of the picture with this number, which was processed ``alone``: those below zero tell the number."""
        ids = [int(token) for token in alone["input_ids"].as_numpy().reshape(-1)]
        return [-number if token < 0 else token for token in self._tokenizing.without_beginning(ids)]


def cannot_take(error: Exception) -> RequestInvalid:
    """What the client is told when the runtime refuses its pictures: the beginning of what it says.

    Raises:
        MemoryError: that was the reason.
    """
    text = " ".join(str(error).split())[:160]
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        raise MemoryError(text) from error
    return RequestInvalid(f"the model cannot take these pictures: {text}", field="messages")
