"""What ``make see`` asks about pictures, what comes of it, and whether that holds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Tiny(NamedTuple):
    """A checkpoint of a family: its architecture, and the module and function that make one. ``side``: of pictures that
    the device's processor leaves as they are, where that is not what a build asks about. ``low``: as how many tokens
    a device looks at a picture as a whole, where it can.
    """

    architecture: str
    module: str
    make: str
    side: int | None = None
    low: int | None = None


TINY = {
    "phi-3.5-vision": Tiny("Phi3VForCausalLM", "tests.packager.vision.phi3v_checkpoint", "make_phi3v", 4 * 336, 313),
    "gemma-3": Tiny("Gemma3ForConditionalGeneration", "tests.packager.vision.gemma3_checkpoint", "make_gemma3"),
    "qwen2.5-vl": Tiny(
        "Qwen2_5_VLForConditionalGeneration", "tests.packager.vision.qwen25vl_checkpoint", "make_qwen25vl"
    ),
}
"""By the name of the bundle: as many as :data:`packager.vision.families.FAMILIES` (a test compares)."""


class Case(NamedTuple):
    """A question about a picture; ``other`` is one that the answer must not fit."""

    picture: str
    question: str
    other: str


CASES = (
    Case("shapes", "What is in this picture?", "stripes"),
    Case("stripes", "Which colours are there?", "shapes"),
    Case("shapes", "How many are there?", "stripes"),
)
"""The last one about a picture that was there before."""

ANSWER_TOKENS = 4

MAX_APART = 0.01
"""Nats, of a token's log-probability. The decoders and encoders are the reference's to 1e-4; pixels that the runtime's
processor smooths where Python takes means are the rest.
"""


SLICE = 16
"""Tokens that are remembered together: of a picture the last ones may stand in a slice with the question."""


class Seen(NamedTuple):
    """What one question gave, and the reference of it: tokens of the prompt, and how far the answer's log-probabilities
    are from those of the reference at most, if that looks at the same picture and if at another. ``behind``: how much
    more likely than a token of the answer the reference finds another one at most (0: it would say the same).
    ``features`` of the tokens are the picture's, and ``cached`` ones were known from a question before.
    """

    picture: str
    parts: int
    prompt_tokens: int
    expected_tokens: int
    features: int
    cached: int
    answer: list[int]
    apart: float
    from_another: float
    behind: float
    first_seconds: float


class Served(NamedTuple):
    """What a device made of a family's bundle: its ``engine`` by ``info`` and by ``doctor``, all answers, and how many
    tokens the first question has with ``detail`` ``low``.
    """

    tiny: Tiny
    engine: str
    why: str
    doctor: str
    answers: list[Seen]
    low_tokens: int


def faults(served: Served) -> list[str]:
    """What of it did not hold."""
    found = [] if served.engine == "batched" else [f"served by the {served.engine} engine: {served.why}"]
    if served.doctor != served.engine:
        found.append(f"doctor names the engine {served.doctor!r}, info {served.engine!r}")
    for each in served.answers:
        found += [f"{each.picture}: {fault}" for fault in _faults_of_answer(each)]
    first, again = served.answers[0], served.answers[-1]
    if not first.cached < first.features < again.cached + SLICE:
        found.append(
            f"{again.picture}: {again.cached} tokens were known from the first question, of which {first.cached} were "
            f"known before; the picture has {first.features}"
        )
    low = first.expected_tokens - (0 if served.tiny.low is None else first.features - served.tiny.low)
    if served.low_tokens != low:
        found.append(f"{first.picture}: {served.low_tokens} tokens with detail low, {low} were expected")
    return found


def _faults_of_answer(seen: Seen) -> list[str]:
    found = []
    if seen.prompt_tokens != seen.expected_tokens:
        found.append(f"{seen.prompt_tokens} tokens, the reference has {seen.expected_tokens}")
    if len(seen.answer) != ANSWER_TOKENS:
        found.append(f"{len(seen.answer)} tokens of an answer were told, not {ANSWER_TOKENS}")
    if not seen.apart <= MAX_APART:
        found.append(f"log-probabilities are {seen.apart:.4f} nats apart, {MAX_APART} at most")
    if not seen.behind <= 2 * MAX_APART:
        found.append(f"the reference finds another token {seen.behind:.4f} nats more likely")
    if not seen.from_another > MAX_APART:
        found.append("the answer fits another picture as well")
    return found


def table(rows: Sequence[tuple[str, Served]]) -> str:
    """For a person: the device beside the reference."""
    lines = [
        "                                tokens of the prompt         log-probabilities apart [nats]           first",
        "family          picture  sent    device reference  known  this picture another picture best token     token",
    ]
    for name, served in rows:
        for each in served.answers:
            sent = f"{each.parts} parts" if each.parts else "within"
            lines.append(
                f"{name:15} {each.picture:8} {sent:8}{each.prompt_tokens:6} {each.expected_tokens:9} {each.cached:6} "
                f"{each.apart:13.5f} {each.from_another:15.5f} {each.behind:10.5f} {each.first_seconds:7.1f} s"
            )
        lines.append(f"{name:15} detail low: {served.low_tokens} tokens; the {served.engine} engine: {served.why}")
    return "\n".join(lines)
