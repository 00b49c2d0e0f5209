"""The text that weights are rounded on: somebody's, what the model itself writes, or a short one that is shipped.

What a model writes on its own covers what it knows: a quarter from the start of a conversation, so that it invents
what users say, and the rest from single tokens drawn at random, so that no kind of text is left out. Seeds are fixed.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import torch

from contract.errors import BuildRefused
from packager.evaluate.layerwise import in_fp32
from packager.quantize.half_precision import INSTRUCTIONS, has_products
from packager.quantize.passages import read_passages

PASSAGE_LENGTH = 256
"""Tokens of a sequence of the shipped text."""

WRITTEN = datetime.date(2025, 1, 1)
"""What a chat template that asks for today's date is told: the same source gives the same bytes on every day."""

SEQUENCES = 128
LENGTH = 192
"""24,576 tokens: against 7,680, a twelfth less divergence on SmolLM2-135M on texts of other kinds."""

LEAST_TOKENS = 2048
"""A text below this says too little of which inputs are large."""

CACHE_BYTES = 3 * 2**30
"""Keys and values of the sequences that are sampled together, at the most."""

WIDE = 32
"""Sequences at once from which a layer converted for every token is quicker than products in half precision without
instructions for them: 167 against 496 ms with 128 rows, 125 against 136 with 32, 112 against 92 with 21 ([8192, 3072],
Zen 3, two threads)."""

SEED = 20
TEMPERATURE = 0.9
CONVERSATIONS = 4
"""One in so many sequences starts a conversation."""

FREE = -1
"""In place of a token that the model writes."""


def tokens_of_text(tokenizer: Any, text: str) -> torch.Tensor:
    """``[sequences, LENGTH]`` spread evenly over ``text``.

    Raises:
        BuildRefused: the text is too short.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < LEAST_TOKENS:
        raise BuildRefused(f"the calibration text has {len(ids)} tokens; at least {LEAST_TOKENS} are needed")
    count = min(SEQUENCES, len(ids) // LENGTH)
    starts = [round(n * (len(ids) - LENGTH) / max(1, count - 1)) for n in range(count)]
    return torch.tensor([ids[start : start + LENGTH] for start in starts])


def tokens_of_passages(tokenizer: Any, context: int) -> torch.Tensor:
    """``[sequences, PASSAGE_LENGTH]``: the shipped passages, and conversations in the model's own template."""
    beginning = [int(token) for token in tokenizer("")["input_ids"]]
    texts = [one[0] if len(one) == 1 else _render(tokenizer, *one) for one in read_passages()]
    ids = [int(token) for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    room = min(PASSAGE_LENGTH, context) - len(beginning)
    pieces = [ids[start : start + room] for start in range(0, len(ids) - room + 1, room)]
    return torch.tensor([[*beginning, *piece] for piece in pieces])


def _render(tokenizer: Any, asked: str, answered: str) -> str:
    """One conversation in the model's template, or as plain lines where there is none that takes it."""
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    if tokenizer.chat_template:
        # Templates may raise anything; the model reads the same words without one.
        with _on_one_day(), contextlib.suppress(Exception):
            return str(tokenizer.apply_chat_template(turns, tokenize=False))
    return f"Question: {asked}\nAnswer: {answered}\n\n"


@contextlib.contextmanager
def _on_one_day() -> Iterator[None]:
    """Templates that ask for today's date are told :data:`WRITTEN`."""
    from transformers.utils import chat_template_utils

    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Stopped:
            return cls(WRITTEN.year, WRITTEN.month, WRITTEN.day, tzinfo=tz)

    clock = chat_template_utils.datetime
    chat_template_utils.datetime = Stopped
    try:
        yield
    finally:
        chat_template_utils.datetime = clock


def sample_self(
    model: Any, tokenizer: Any, context: int, on_token: Callable[[int, int], None] = lambda done, of: None
) -> torch.Tensor:
    """``[SEQUENCES, LENGTH]`` tokens that ``model`` wrote; ``on_token`` hears how many are there, and of how many."""
    generator = torch.Generator().manual_seed(SEED)
    length = min(LENGTH, context)
    opening = _conversation(tokenizer)
    talks = SEQUENCES // CONVERSATIONS if opening and len(opening) < length // 2 else 0
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    drawn = torch.randint(0, len(tokenizer), (SEQUENCES - talks, 1), generator=generator).tolist()
    starts = [one if begin is None else [int(begin), *one] for one in drawn] + [opening] * talks
    longest = max(map(len, starts))
    begun = torch.tensor([[*start, *[FREE] * (longest - len(start))] for start in starts])
    at_once = max(1, CACHE_BYTES // (length * _cached_bytes(model)))
    written: list[torch.Tensor] = []
    for some in begun.split(at_once):

        def report(tokens: int, rows: int = len(some), before: int = sum(map(len, written))) -> None:
            on_token(before * length + rows * tokens, SEQUENCES * length)

        written.append(_grow(model, some, length, generator, report))
    return torch.cat(written)


def _is_wide(model: Any, rows: int) -> bool:
    """Whether so many sequences at once are grown in fp32, one converted layer at a time."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return dtype in INSTRUCTIONS and rows >= WIDE and not has_products(dtype)


def _cached_bytes(model: Any) -> int:
    """Of one token's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = 4 if _is_wide(model, SEQUENCES) else next(model.parameters()).element_size()
    return int(2 * config.num_hidden_layers * kept * size * width)


def _conversation(tokenizer: Any) -> list[int] | None:
    """What stands before a user's words; None for models without a chat template."""
    if not tokenizer.chat_template:
        return None
    mark = "MARK"
    text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
    if mark not in text:
        return None
    return [int(token) for token in tokenizer(text.partition(mark)[0], add_special_tokens=False)["input_ids"]]


OnLength = Callable[[int], None]
"""Hears how many tokens each sequence has by now."""


def _grow(
    model: Any, begun: torch.Tensor, length: int, generator: torch.Generator, on_length: OnLength
) -> torch.Tensor:
    with in_fp32(model) if _is_wide(model, len(begun)) else contextlib.nullcontext():
        return _grow_on(model, begun, length, generator, on_length)


def _grow_on(
    model: Any, begun: torch.Tensor, length: int, generator: torch.Generator, on_length: OnLength
) -> torch.Tensor:
    """``begun`` ``[sequences, tokens]`` written on; of those that begin with more tokens than others, these stay."""
    free = (begun == FREE).any(0).nonzero()
    past, ids = None, begun[:, : int(free[0]) if len(free) else begun.shape[1]]
    step = ids
    while ids.shape[1] < length:
        output = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = output.past_key_values
        chances = torch.softmax(output.logits[:, -1].float() / TEMPERATURE, -1)
        step = torch.multinomial(chances, 1, generator=generator)
        if ids.shape[1] < begun.shape[1]:
            given = begun[:, ids.shape[1], None]
            step = torch.where(given == FREE, step, given)
        ids = torch.cat([ids, step], 1)
        on_length(ids.shape[1])
    return ids
