"""Showing a picture to a loaded model: how likely it finds an answer, and the canary that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contract.bundle.canary import PICTURE, join_canary
from contract.bundle.picture_families import PICTURE_FAMILIES
from contract.errors import BuildRefused
from packager.evaluate.divergence import log_softmax
from packager.evaluate.jobs import CanaryResult
from packager.vision.phi3v import CROP, picture_tokens
from packager.vision.pictures import canary_picture

if TYPE_CHECKING:
    from packager.evaluate.check_process import Runtime

QUESTION = "What is in this picture?"
ANSWER = "A red disc, a blue square and a green triangle."
"""What is scored where the model says nothing."""

WHOLE_TOKENS = picture_tokens(CROP, CROP)

Inputs = Mapping[str, npt.NDArray[Any]]
Logits = npt.NDArray[np.float32]


def show_picture(runtime: Runtime, tokens: int) -> CanaryResult | None:
    """The canary about a picture with an answer of so many ``tokens``, of a model that devices can show one."""
    facts = runtime.facts
    if "vision" not in facts.capabilities or facts.model_type not in PICTURE_FAMILIES or not runtime.chat:
        return None
    picture, prompt = canary_picture(), runtime.render(f"{PICTURE}\n{QUESTION}")
    if prompt.count(PICTURE) != 1:
        raise BuildRefused("the chat template loses what stands for a picture, so no canary can show one")
    ids, inputs = prepare_prompt(runtime, prompt, picture)
    if len(ids) + tokens + 1 > facts.context_length:
        raise BuildRefused(f"the context of {facts.context_length} tokens is too short for a picture")
    return score_picture(runtime, prompt, answer_about(runtime, ids, inputs, tokens) or ANSWER, picture)


def score_picture(runtime: Runtime, prompt: str, text: str, picture: bytes) -> CanaryResult:
    """How likely the model finds ``text`` as the answer to ``prompt`` about ``picture``."""
    ids, inputs = prepare_prompt(runtime, prompt, picture)
    whole, first = join_canary(ids, runtime.encode(text), runtime.beginning)
    answer = np.array(whole[first:])
    if not len(answer):
        raise BuildRefused("a canary about a picture has no text")
    means = []
    for size in (1, len(answer)):
        rows = log_softmax(rows_after(runtime, ids, inputs, whole[first:], size))
        means.append(-float(rows[np.arange(len(answer)), answer].mean()))
    return CanaryResult(prompt, text, means[0], max(means) - min(means), picture=picture)


def prepare_prompt(runtime: Runtime, prompt: str, picture: bytes) -> tuple[list[int], Inputs]:
    """The tokens of ``prompt`` with those of ``picture`` in it, as a device has them with ``detail`` low, and what the
    encoder reads.
    """
    inputs = runtime.process(picture)
    seen = [int(token) for token in inputs.pop("input_ids").reshape(-1)]
    if PICTURE_FAMILIES[runtime.facts.model_type].low == "whole":
        seen = _look_at_the_whole(inputs)
    before, after = prompt.split(PICTURE)
    return [*runtime.start(before), *_follow(runtime, seen), *_follow(runtime, runtime.encode(after))], inputs


def _follow(runtime: Runtime, ids: list[int]) -> list[int]:
    """``ids`` without what only a beginning has."""
    size = len(runtime.beginning)
    return ids[size:] if size and ids[:size] == list(runtime.beginning) else ids


def _look_at_the_whole(inputs: dict[str, npt.NDArray[Any]]) -> list[int]:
    """Turn what Phi-3-vision reads of a square picture into what it reads of one crop; the tokens of that."""
    inputs["pixel_values"] = inputs["pixel_values"][:, [0, 0]]
    inputs["image_sizes"] = np.full_like(inputs["image_sizes"], CROP)
    inputs["num_image_tokens"] = np.full_like(inputs["num_image_tokens"], WHOLE_TOKENS)
    return [-1] * WHOLE_TOKENS


def rows_after(runtime: Runtime, ids: Sequence[int], inputs: Inputs, answer: Sequence[int], size: int = 1) -> Logits:
    """Logits that predict each token of ``answer``, read ``size`` tokens at a time behind the prompt ``ids``, in which
    a picture of ``inputs`` stands.
    """
    generator = runtime.read({**inputs, "input_ids": np.array([ids], np.int32)}, len(ids) + len(answer))
    rows = [np.asarray(generator.get_output("logits"), dtype=np.float32)[0, -1:]]
    for start in range(0, len(answer) - 1, size):
        piece = answer[start : min(start + size, len(answer) - 1)]
        generator.append_tokens(np.array(piece, dtype=np.int32))
        rows.append(np.asarray(generator.get_output("logits"), dtype=np.float32)[0, -len(piece) :])
    found: Logits = np.concatenate(rows)
    runtime.require_finite(found)
    return found


def answer_about(runtime: Runtime, ids: Sequence[int], inputs: Inputs, tokens: int) -> str:
    """The greedy answer to the prompt ``ids``, in which a picture of ``inputs`` stands."""
    generator = runtime.read({**inputs, "input_ids": np.array([ids], np.int32)}, len(ids) + tokens + 1)
    made: list[int] = []
    while not generator.is_done() and len(made) < tokens:
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
        if token in runtime.facts.eos_token_ids:
            break
        made.append(token)
    return str(runtime.tokenizer.decode(np.array(made, dtype=np.int32))) if made else ""
