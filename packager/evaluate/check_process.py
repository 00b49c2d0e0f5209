"""The process that loads a built model; the packager's only one that imports the runtime.

It peaks at what a device's worker will: prompts go in by slices, and the key-value cache is as long as the canary.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contract.bundle.canary import STOP_TOKENS, join_canary
from contract.bundle.genai_config import CONFIG_FILE, GenaiFacts, read_genai_config
from contract.bundle.picture_families import PICTURE_FAMILIES
from contract.bundle.tokens import begin, compose, composes, read_beginning
from contract.chat.files import read_chat_files
from contract.chat.template import ChatTemplate
from contract.errors import BuildRefused, RequestInvalid
from packager.evaluate import divergence
from packager.evaluate.conversations import DAY, Rendering, differing
from packager.evaluate.divergence import log_softmax
from packager.evaluate.jobs import CHECK, CanaryResult, CheckJob, CheckResult, Comparison, SourceView, Spelling
from packager.evaluate.picture_check import score_picture, show_picture
from packager.subprocess_job import Reporter, child_main

SLICE = 64
"""Tokens of one prefill call: logits of [tokens, vocabulary] in fp32 are what makes memory peak."""

OTHER_SLICE = 16
"""A second length, to see how far rounding alone moves a score."""

WINDOW = 256
"""Tokens of reference text read as one sequence."""

WINDOWS = 4
"""Sequences of reference text: about a thousand tokens, seconds on two cores."""

ADAPTER = "adapter"

Logits = npt.NDArray[np.float32]


class Answer(NamedTuple):
    """A greedy answer: its text, seconds and tokens of decoding, and whether an end token ended it."""

    text: str
    seconds: float
    tokens: int
    ended: bool


class Runtime:
    """One loaded model."""

    def __init__(self, model_dir: Path, threads: int, adapter: str | None = None) -> None:
        import onnxruntime_genai as og

        self._og = og
        self.facts: GenaiFacts = read_genai_config((model_dir / CONFIG_FILE).read_bytes())
        started = time.perf_counter()
        try:
            config = og.Config(str(model_dir))
            options = {"intra_op_num_threads": threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model = og.Model(config)
            self.tokenizer = og.Tokenizer(self._model)
            self._adapters = None
            if adapter is not None:
                self._adapters = og.Adapters(self._model)
                self._adapters.load(adapter, ADAPTER)
        except Exception as error:  # the binding raises bare RuntimeError and its own kinds alike
            reason = " ".join(str(error).split())[:300]
            raise BuildRefused(f"the built model does not load: {reason}") from error
        self.load_seconds = time.perf_counter() - started
        self.beginning = read_beginning(self.tokenizer)
        file = model_dir / "tokenizer.json"
        self._composes = file.is_file() and composes(json.loads(file.read_bytes()))
        self._template = ChatTemplate(read_chat_files(model_dir), now=lambda: DAY)
        self.chat = self._template.exists

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` as it is, without what stands before a text."""
        return [int(token) for token in self.tokenizer.encode(compose(text) if self._composes else text)]

    def start(self, prompt: str) -> list[int]:
        """Token ids of a rendered conversation, or of a text for a model without a template, with its beginning."""
        ids = self.encode(prompt)
        return ids if self.chat else begin(ids, self.beginning)

    def render(self, question: str) -> str:
        """``question`` in the model's chat template, or as it is when there is none."""
        if not self.chat:
            return question
        try:
            return self._template.render([{"role": "user", "content": question}])
        except RequestInvalid as refused:
            raise BuildRefused(f"a question cannot be asked: {refused.message}") from refused

    def rerendered(self, renderings: Sequence[Rendering]) -> list[str]:
        """Conversations that a device would render otherwise than transformers."""
        return differing(self._template, renderings)

    def generator(self, length: int) -> Any:
        """A greedy generator for ``length`` tokens, or as many as its layers keep at least."""
        params = self._og.GeneratorParams(self._model)
        length = min(max(length, self.facts.least_cache), self.facts.context_length)
        params.set_search_options(max_length=length, do_sample=False)
        generator = self._og.Generator(self._model, params)
        if self._adapters is not None:
            generator.set_active_adapter(self._adapters, ADAPTER)
        return generator

    def answer(self, prompt: str, tokens: int, patience: int = 0) -> Answer:
        """The greedy answer to ``prompt``, its text cut after ``tokens``; it is given ``patience`` tokens to end."""
        ids = self.start(prompt)
        limit = min(max(tokens, patience), self.facts.context_length - len(ids) - 2)
        if limit < 1:
            raise BuildRefused(f"the context of {self.facts.context_length} tokens is too short for a canary")
        generator = self.generator(len(ids) + limit + 1)
        for start in range(0, len(ids), SLICE):
            generator.append_tokens(np.array(ids[start : start + SLICE], dtype=np.int32))
        self.require_finite(np.asarray(generator.get_logits()))
        made: list[int] = []
        ended = False
        started = time.perf_counter()
        while not generator.is_done() and len(made) <= limit:
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            ended = token in self.facts.eos_token_ids
            if ended or len(made) == limit:
                break
            made.append(token)
        seconds = time.perf_counter() - started
        answered = made[:tokens]
        text = str(self.tokenizer.decode(np.array(answered, dtype=np.int32))) if answered else ""
        return Answer(text, seconds, len(made), ended)

    def stops_at(self, token: int, prompt: str) -> bool:
        """Whether generation after ``prompt`` is over once the model says ``token``, which it is made to say."""
        ids = self.start(prompt)
        generator = self.generator(len(ids) + STOP_TOKENS)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        logits = np.asarray(generator.get_logits())
        forced = np.full_like(logits, -1e4)
        forced[..., token] = 0
        generator.set_logits(forced)
        generator.generate_next_token()
        return int(generator.get_next_tokens()[0]) == token and bool(generator.is_done())

    def walk(self, ids: list[int], first: int, size: int) -> Iterator[tuple[int, Logits]]:
        """Logits that predict ``ids[first:]``, read ``size`` tokens at a time: index of the first one and its rows."""
        generator = self.generator(len(ids))
        filled = 0
        while filled < len(ids) - 1:
            end = min(filled + size, len(ids) - 1)
            if filled < first - 1:
                end = min(end, first - 1)
            generator.append_tokens(np.array(ids[filled:end], dtype=np.int32))
            if filled >= first - 1:
                logits: Logits = np.asarray(generator.get_output("logits"), dtype=np.float32)[0]
                self.require_finite(logits)
                if len(logits) < end - filled:
                    if size == 1:
                        raise BuildRefused("the built model shows no logits to score")
                    # A pruned lm_head shows the last position only: once more from the start, one by one.
                    yield from self.walk(ids, first, 1)
                    return
                yield filled + 1, logits
            filled = end

    def process(self, picture: bytes) -> dict[str, npt.NDArray[Any]]:
        """What the runtime's own processor makes of one picture in an empty prompt."""
        processor = self._model.create_multimodal_processor()
        placeholder = PICTURE_FAMILIES[self.facts.model_type].placeholder.format(1)
        tensors = processor(placeholder, images=self._og.Images.open_bytes(picture))
        return {str(name): np.asarray(tensors[name].as_numpy()) for name in list(tensors.keys())}

    def read(self, inputs: Mapping[str, npt.NDArray[Any]], length: int) -> Any:
        """A generator for ``length`` tokens that has read ``inputs``: tokens, and tensors of a picture among them."""
        tensors = self._og.NamedTensors()
        for name, array in inputs.items():
            # The binding knows one of two equal types of 64 bits.
            own = np.empty(array.shape, array.dtype.str)
            own[...] = array
            tensors[name] = own
        generator = self.generator(length)
        try:
            generator.set_inputs(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise BuildRefused(f"the built model cannot read a picture: {reason}") from error
        return generator

    def losses(self, ids: list[int], first: int, size: int) -> list[float]:
        """``-log softmax(logits)[token]`` of ``ids[first:]``, read ``size`` tokens at a time."""
        found: list[float] = []
        for start, logits in self.walk(ids, first, size):
            found += [_loss(row, ids[start + number]) for number, row in enumerate(logits)]
        return found

    @staticmethod
    def require_finite(logits: Logits) -> None:
        if not np.isfinite(logits).all():
            raise BuildRefused("the built model gives numbers that are not finite; the weights are damaged")


def _loss(row: Logits, token: int) -> float:
    top = float(row.max())
    return top + float(np.log(np.exp(row - top).sum())) - float(row[token])


def check(job: CheckJob, reporter: Reporter) -> CheckResult:
    """Load, answer, score, read."""
    runtime, source = Runtime(Path(job.model), job.threads, job.adapter), job.source
    reading = len(source.windows) if source else WINDOWS if job.text else 0
    steps = 1 + len(job.questions) + len(job.known) + reading + len(job.behaviour)
    reporter.progress(1, steps)
    canaries: list[CanaryResult] = []
    seconds, decoded = 0.0, 0
    pairs = [(prompt, text, stops and _stops_again(runtime, prompt)) for prompt, text, stops in job.known]
    # Without a source nobody knows where an answer has to end.
    ended = source.ended if source else []
    ended = [*ended, *[not source] * len(job.questions)]
    over = []
    for question, must_end in zip(job.questions, ended, strict=False):
        prompt = runtime.render(question)
        answer = runtime.answer(prompt, job.tokens, STOP_TOKENS if must_end else 0)
        seconds, decoded = seconds + answer.seconds, decoded + answer.tokens
        over.append(answer.ended)
        if answer.text:
            pairs.append((prompt, answer.text, answer.ended and must_end))
    for number, (prompt, text, stops) in enumerate(pairs):
        canaries.append(_score(runtime, prompt, text, stops=stops))
        reporter.progress(2 + number, steps)
    if job.questions and not canaries:
        raise BuildRefused("the built model answers none of the canary prompts; its end token may be wrong")
    seen = None
    if job.shown is not None:
        seen = score_picture(runtime, *job.shown)
    elif job.questions and job.adapter is None:
        seen = show_picture(runtime, job.tokens)
    # Taken here, since what follows holds the source's rows as well.
    peak = peak_rss_bytes()
    stopped_by = _stopping(runtime) if "text" in runtime.facts.capabilities else []
    answers = [runtime.answer(runtime.render(question), limit).text for question, limit in job.behaviour]
    compared = _compare(runtime, source, job.text) if source else None
    perplexity, tokens = _read(runtime, job.text) if job.text and not source else (None, 0)
    if compared is not None:
        perplexity, tokens = compared.perplexity, compared.tokens
    reporter.progress(steps, steps)
    return CheckResult(
        canaries=canaries,
        load_seconds=round(runtime.load_seconds, 4),
        tokens_per_second=round(decoded / seconds, 2) if seconds else 0.0,
        peak_rss_bytes=peak,
        threads=job.threads,
        perplexity=perplexity,
        perplexity_tokens=tokens,
        compared=compared,
        answers=answers,
        ended=over,
        stopped_by=stopped_by,
        seen=seen,
        respelled=_respelled(runtime, job.spellings),
        rerendered=runtime.rerendered(job.renderings),
    )


def _stops_again(runtime: Runtime, prompt: str) -> bool:
    return runtime.answer(prompt, STOP_TOKENS).ended


def _stopping(runtime: Runtime) -> list[int]:
    """The end tokens, each of which ends generation.

    Raises:
        BuildRefused: one does not.
    """
    for token in runtime.facts.eos_token_ids:
        if not runtime.stops_at(token, runtime.render("x")):
            raise BuildRefused(f"generation continues after the end token {token}; the runtime ignores it")
    return list(runtime.facts.eos_token_ids)


def _respelled(runtime: Runtime, spellings: Sequence[Spelling]) -> list[str]:
    """Texts that the runtime makes other tokens of than the source's tokenizer, with or without a beginning."""
    found = []
    for text, plain, begun in spellings:
        ids = runtime.encode(text)
        if ids != plain or [*runtime.beginning, *ids] != begun:
            found.append(text)
    return found


def _compare(runtime: Runtime, source: SourceView, text: str | None) -> Comparison:
    """The source's rows beside ours, a slice at a time; the file is mapped, never read whole."""
    rows = np.memmap(source.rows, dtype=np.float16, mode="r").reshape(-1, source.vocabulary)
    sums, at, lead = divergence.Comparison(), 0, source.lead
    for window in source.windows:
        for start, logits in runtime.walk(window, max(1, lead), SLICE):
            tokens = np.array(window[start : start + len(logits)], dtype=np.int64)
            theirs = np.asarray(rows[at : at + len(logits)], dtype=np.float32)
            sums.add(theirs, log_softmax(logits), tokens)
            at += len(logits)
    expected = [token for window in source.windows for token in window[lead:]]
    return Comparison(
        **sums.summary(),
        kl_by_position=[float(f"{value:.3g}") for value in sums.kl],
        tokenizer_same=text is None or runtime.encode(text)[: len(expected)] == expected,
    )


def _score(runtime: Runtime, prompt: str, text: str, *, stops: bool) -> CanaryResult:
    ids, first = join_canary(runtime.start(prompt), runtime.encode(text), runtime.beginning)
    if len(ids) <= first or len(ids) > runtime.facts.context_length:
        raise BuildRefused("a canary has no text, or more than the context holds")
    means = [float(np.mean(runtime.losses(ids, first, size))) for size in (SLICE, OTHER_SLICE)]
    return CanaryResult(prompt, text, means[0], max(means) - min(means), stops)


def _read(runtime: Runtime, text: str) -> tuple[float | None, int]:
    ids = runtime.encode(text)
    size = min(WINDOW, runtime.facts.context_length)
    losses: list[float] = []
    for window in range(WINDOWS):
        piece = ids[window * size : (window + 1) * size]
        if len(piece) > 1:
            losses += runtime.losses(piece, 1, SLICE)
    return (round(float(np.exp(np.mean(losses))), 4), len(losses)) if losses else (None, 0)


def peak_rss_bytes() -> int:
    """The most memory this process ever had resident. ``ru_maxrss`` would count the parent's before exec."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BuildRefused("this system does not say how much memory a process took")


if __name__ == "__main__":
    child_main(CHECK, check)
