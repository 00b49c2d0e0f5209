"""How a canary is scored, so that packager and device mean the same number.

Prompt and text are tokenised apart, the text without the tokens that only a beginning has; the text's tokens are
scored, each given all before it; the score is the mean of ``-log softmax(logits)[token]`` in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

STOP_TOKENS = 128
"""Tokens within which a greedy answer must end where the build's did. It may be another answer: instruction sets round
differently. Four times what a build writes down of one, a second on a slow device.
"""

PICTURE = "\ufffc"
"""Where a canary's picture stands in its prompt: the object replacement character."""


def join_canary(prompt: Sequence[int], text: Sequence[int], beginning: Sequence[int]) -> tuple[list[int], int]:
    """All tokens, and the index of the first one to score.

    ``beginning`` is what the tokenizer makes of an empty text. At least one token stays context: the first token of a
    sequence has nothing to be predicted from.
    """
    size = len(beginning)
    rest = text[size:] if size and list(text[:size]) == list(beginning) else text
    return [*prompt, *rest], max(1, len(prompt))
