"""The process that runs the source model with transformers: weights as its checkpoint has them, products in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.errors import BuildRefused
from packager.evaluate.ends import find_ends
from packager.evaluate.jobs import SOURCE, SourceJob, SourceResult
from packager.evaluate.layerwise import in_fp32
from packager.subprocess_job import Reporter, child_main

WINDOW = 256
"""Tokens read as one sequence."""

SLICE = 64
"""Positions whose probabilities exist at a time."""

AT_ONCE = 4
"""Sequences in one pass, each of which converts every layer: ``[4, 256, vocabulary]`` logits in fp32 are 1 GiB for the
largest vocabularies."""


def view(job: SourceJob, reporter: Reporter) -> SourceResult:
    """Write the log-probabilities of every scored position and answer the questions."""
    import torch

    torch.manual_seed(0)
    model, tokenizer = load_source(job.checkpoint)
    with torch.inference_mode():
        beginning = [int(token) for token in tokenizer("")["input_ids"]]
        windows = cut_windows(tokenizer, job, _context(model), beginning)
        steps = len(windows) + len(job.questions)
        vocabulary = 0
        with (Path(job.out) / "logits.f16").open("wb") as file:
            for start in range(0, len(windows), AT_ONCE):
                part = windows[start : start + AT_ONCE]
                vocabulary = _write_rows(model, part, max(1, len(beginning)), file)
                reporter.progress(start + len(part), steps)
        answers: list[str] = []
        ended: list[bool] = []
        ends = set(find_ends(Path(job.checkpoint), tokenizer))
        for number, (question, limit) in enumerate(job.questions):
            text, over = _answer(model, tokenizer, question, limit, ends)
            answers.append(text)
            ended.append(over)
            reporter.progress(len(windows) + number + 1, steps)
    return SourceResult(
        windows=windows,
        lead=len(beginning),
        vocabulary=vocabulary,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        answers=answers,
        ended=ended,
    )


def load_source(checkpoint: str) -> tuple[Any, Any]:
    """The model in its own precision and its tokenizer; nothing in the checkpoint is run as code.

    Raises:
        BuildRefused: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except (ValueError, KeyError, ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildRefused(f"the source cannot be run to compare with: {reason}") from error
    return model.eval(), tokenizer


def _context(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", WINDOW) or WINDOW)


def cut_windows(tokenizer: Any, job: SourceJob, context: int, beginning: list[int]) -> list[list[int]]:
    """Sequences of at most :data:`WINDOW` tokens, each with what the tokenizer puts at a beginning.

    Raises:
        BuildRefused: the text has too few tokens.
    """
    ids = [int(token) for token in tokenizer(job.text, add_special_tokens=False)["input_ids"]][: job.tokens]
    if len(ids) < job.least:
        raise BuildRefused(f"the text to read has {len(ids)} tokens; at least {job.least} are needed to say anything")
    room = min(WINDOW, context) - len(beginning)
    pieces = [ids[start : start + room] for start in range(0, len(ids), room)]
    return [[*beginning, *piece] for piece in pieces if len(piece) > 1 or (beginning and piece)]


def _write_rows(model: Any, windows: list[list[int]], first: int, file: Any) -> int:
    """Log-probabilities that predict ``window[first:]`` of each, a slice of positions at a time; the vocabulary's size.

    Shorter ones are filled up behind, where nothing that counts looks.
    """
    import torch

    longest = max(map(len, windows))
    ids = torch.tensor([[*window, *[window[-1]] * (longest - len(window))] for window in windows])
    with in_fp32(model):
        logits = model(ids, use_cache=False).logits
    for window, rows in zip(windows, logits, strict=True):
        for start in range(first - 1, len(window) - 1, SLICE):
            piece = rows[start : min(start + SLICE, len(window) - 1)].float()
            if not bool(torch.isfinite(piece).all()):
                raise BuildRefused("the source model gives numbers that are not finite; its weights are damaged")
            file.write(torch.log_softmax(piece, -1).half().numpy().tobytes())
    return int(logits.shape[-1])


def _answer(model: Any, tokenizer: Any, question: str, limit: int, ends: set[int]) -> tuple[str, bool]:
    """The greedy answer to ``question`` in the chat template, or to the bare text when there is none; whether one of
    ``ends`` ended it.
    """
    import torch

    prompt, special = question, True
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": question}]
        prompt, special = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True), False
    ids = tokenizer(prompt, add_special_tokens=special, return_tensors="pt")["input_ids"]
    made: list[int] = []
    past, step, over = None, ids, False
    for _ in range(limit + 1):
        output = model(step, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = output.past_key_values
        step = torch.argmax(output.logits[:, -1], -1, keepdim=True)
        over = int(step) in ends
        if over or len(made) == limit:
            break
        made.append(int(step))
    return str(tokenizer.decode(made, skip_special_tokens=True)), over


if __name__ == "__main__":
    child_main(SOURCE, view)
