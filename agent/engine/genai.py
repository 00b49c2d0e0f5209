"""The ``genai`` engine: onnxruntime-genai's Generator, one for each request, taken in turns.

Generators cannot share a batch when requests arrive at different times, so a step gives every active request one
token, one after the other, and one request one slice of its prompt. Tokens are chosen by ``agent.engine.sampling``
and fed back, so that parameters can change between tokens; beam search is onnxruntime-genai's own.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from functools import partial
from typing import Any

import numpy as np
from msgspec.structs import replace

from agent.engine.adapters import LoadedAdapters
from agent.engine.choices import Choices
from agent.engine.config import read_config
from agent.engine.generator_sequence import GeneratorSequence
from agent.engine.grammar import Grammars
from agent.engine.interface import CanaryScore, Facts, FinishEvent, Generation, Progress, StepEvent, silent
from agent.engine.kernels import Kernels
from agent.engine.kv_budget import KvBudget, rounded
from agent.engine.load_options import ModelFiles, Resources
from agent.engine.memory import plan_cache
from agent.engine.processors import Processors
from agent.engine.runtime_errors import runtime_errors
from agent.engine.scoring import SCORE_SLICE, canary_score, generator_losses, picture_losses
from agent.engine.sequence import LogitRules, TokenSequence, constrain, prepare, rejection, with_changes
from agent.engine.tokenizing import Tokenizing
from agent.engine.vision import ImageInputs, ImagePreprocessor, Vision
from contract.bundle.footprint import kv_element, kv_token_bytes
from contract.bundle.picture_families import PICTURE_FAMILIES
from contract.errors import EngineFailed, RequestInvalid
from contract.onnx.wire import read_graph_file

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is first imported

SLOTS = 4
"""Requests taken in turns. More would only make each slower: the sum of their speeds stays the same."""

CAPABILITIES = (
    "chat",
    "tools",
    "stop",
    "seed",
    "logprobs",
    "logit_bias",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "response_format",
    "update",
)


class GenaiEngine:
    """See :class:`agent.engine.interface.Engine`.

    Raises:
        EngineFailed: the bundle cannot be loaded.
    """

    def __init__(
        self,
        files: ModelFiles,
        resources: Resources,
        *,
        why: str = "asked for",
        processors: Processors | None = None,
        progress: Progress = silent,
    ) -> None:
        started = time.monotonic()
        self._processors = processors
        bundle_dir = files.bundle_dir
        config = read_config(bundle_dir)
        with runtime_errors("the model cannot be loaded"):
            import onnxruntime_genai

            self._og: Any = onnxruntime_genai
            overlaid = self._og.Config(str(bundle_dir))
            overlaid.overlay(json.dumps(_overlay(resources.threads, resources.kernels)))
            progress("reading the weights", last=True)  # it holds the interpreter until it is done
            self._model: Any = self._og.Model(overlaid)
            progress("the weights are loaded")
            self._adapters = LoadedAdapters(self._og, self._model, files.adapters)
            self._tokenizing = Tokenizing(self._og.Tokenizer(self._model), bundle_dir, config.eos_token_ids)
            self._pipeline = "vision" in config.capabilities
            sees = self._pipeline and config.model_type in PICTURE_FAMILIES and self._tokenizing.chat
            self._vision = Vision(self._og, self._model, config.model_type, self._tokenizing) if sees else None
        self._grammars = Grammars(bundle_dir, config.vocab_size, config.eos_token_ids)
        token_bytes = kv_token_bytes(config, kv_element(config, read_graph_file(bundle_dir / config.filename)))
        plan = plan_cache(
            token_bytes,
            config.context_length,
            [bundle_dir],
            max_bytes=resources.max_bytes,
            leaving=resources.reclaimable_bytes,
        )
        self._least_cache = config.least_cache
        self._room = KvBudget(config, token_bytes, plan.budget, self._shows_all_logits)
        if not self._room.holds_one:
            raise EngineFailed(f"{plan.budget >> 20} MiB are too little memory for this model")
        self._waiting: deque[GeneratorSequence] = deque()
        self._active: list[GeneratorSequence] = []
        self._preprocessing: dict[int, tuple[Generation, ImagePreprocessor]] = {}
        self._events: list[StepEvent] = []
        self._choices = Choices()
        self._facts = Facts(
            engine="genai",
            why=why,
            slots=SLOTS,
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            capabilities=self._capabilities(bool(files.adapters)),
            load_seconds=time.monotonic() - started,
        )

    @property
    def facts(self) -> Facts:
        return self._facts

    def computed_by(self, kernels: str) -> None:
        self._facts = replace(self._facts, kernels=kernels)

    @property
    def busy(self) -> bool:
        return bool(self._active or self._waiting or self._events or self._preprocessing)

    @property
    def next_read(self) -> int:
        filling = next((turn for turn in (*self._active, *self._waiting) if not turn.prefilled), None)
        return 0 if filling is None else filling.reads_at_once

    def admit(self, generation: Generation) -> None:
        """See the interface; whatever this engine cannot do is rejected with the field's name at the next step."""
        try:
            if self._vision and generation.pictures:
                look = ImagePreprocessor(self._vision, generation.pictures, self._facts.context_length)
                self._preprocessing[generation.request] = (generation, look)
            else:
                self._waiting.append(self._prepare(generation))
        except RequestInvalid as refused:
            self._events.append(rejection(generation.request, refused))

    def step(self) -> list[StepEvent]:
        """Start what fits, prefill one slice of one prompt, then one token for everybody who is past the prompt, and
        read one picture, whose prompt may come with the next step.
        """
        events, self._events = self._events, []
        self._start_waiting()
        filling = next((turn for turn in self._active if not turn.prefilled), None)
        for turn in list(self._active):
            if turn is filling:
                try:
                    with runtime_errors("the model failed in prefill"):
                        turn.prefill()
                except RequestInvalid as refused:
                    self._active.remove(turn)
                    events.append(rejection(turn.answer.generation.request, refused))
                    continue
                if not turn.prefilled:
                    # The next step takes another prompt's slice.
                    self._active.remove(turn)
                    self._active.append(turn)
                    continue
            if turn.prefilled:
                with runtime_errors("the model failed in decode"):
                    events.extend(turn.advance())
                if turn.answer.finished:
                    self._active.remove(turn)
        self._preprocess()
        merged = self._choices.merge(events)
        while self._choices.abandoned:
            self._drop(self._choices.abandoned.pop())
        return merged

    def update(self, request: int, changes: dict[str, Any]) -> bool:
        if request in self._preprocessing:
            generation, look = self._preprocessing[request]
            changed = with_changes(generation, changes)
            self._preprocessing[request] = (changed or generation, look)
            return changed is not None
        for turn in [*self._active, *self._waiting]:
            if turn.answer.generation.request == request and turn.beams == 1:
                taken = [answer.change(changes) for answer in turn.answers]
                return all(taken)
        return False

    def cancel(self, request: int) -> list[StepEvent]:
        if self._preprocessing.pop(request, None) is not None:
            return [FinishEvent(request, "cancelled", "", 0, 0)]
        return self._choices.merge(self._drop(request))

    def _drop(self, request: int) -> list[StepEvent]:
        """End what there is of a request, wherever it is."""
        for turns in (self._active, self._waiting):
            for turn in list(turns):
                if turn.answer.generation.request == request:
                    turns.remove(turn)
                    return [answer.end("cancelled") for answer in turn.answers]
        return []

    def release(self) -> None:
        self._choices.forget()
        self._active.clear()
        self._waiting.clear()
        self._preprocessing.clear()
        self._adapters.release()
        self._vision = None
        self._model = None

    def score(self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None) -> CanaryScore:
        """See the interface. Each token's logits come from feeding all before it, a slice at a time.

        Raises:
            EngineFailed: nothing to score, or longer than the context, or the runtime failed.
        """
        if picture is not None:
            return self._score_picture(prompt, text, picture, adapter)
        ids, first = self._tokenizing.encode_canary(prompt, text)
        if len(ids) <= first or len(ids) > self._facts.context_length:
            raise EngineFailed("a canary has no text, or more than the context holds")
        with runtime_errors("the model failed on a canary"):
            options = {"max_length": rounded(len(ids), self._facts.context_length, self._least_cache)}
            losses = generator_losses(self._generator(options, adapter), ids, first, SCORE_SLICE)
            if losses is None:
                losses = generator_losses(self._generator(options, adapter), ids, first, 1) or [math.nan]
            return canary_score(losses)

    def _score_picture(self, prompt: str, text: str, picture: bytes, adapter: str | None) -> CanaryScore:
        if self._vision is None:
            raise EngineFailed("the model of this bundle takes no pictures here")
        with runtime_errors("the model failed on a canary about a picture"):
            try:
                seen = self._vision.glance(picture)
                ids, first = self._tokenizing.encode_canary(prompt, text, seen.tokens[0])
            except RequestInvalid as refused:
                raise EngineFailed(f"the picture of a canary: {refused.message}") from refused
            if len(ids) <= first or len(ids) > self._facts.context_length:
                raise EngineFailed("a canary has no text, or more than the context holds")
            generator = self._generator({"max_length": len(ids)}, adapter)
            generator.set_inputs(seen.inputs(ids[:first]))
            return canary_score(picture_losses(generator, ids[first:]))

    def _capabilities(self, adapters: bool) -> tuple[str, ...]:
        lacking = {"chat": not self._tokenizing.chat, "tools": not self._tokenizing.chat, "num_beams": self._pipeline}
        more = {"adapters": adapters, "vision": self._vision is not None}
        return (*(name for name in CAPABILITIES if not lacking.get(name)), *(name for name in more if more[name]))

    def _preprocess(self) -> None:
        """Read the next picture of whoever came first; once all are read, the request waits for its turn."""
        if not self._preprocessing:
            return
        request, (generation, look) = next(iter(self._preprocessing.items()))
        try:
            with runtime_errors("the model failed on a picture"):
                seen = look.advance()
            if seen is None:
                return
            self._waiting.append(self._prepare(generation, seen))
        except RequestInvalid as refused:
            self._events.append(rejection(request, refused))
        del self._preprocessing[request]

    def _prepare(self, generation: Generation, seen: ImageInputs | None = None) -> GeneratorSequence:
        adapter = self._adapters.find(generation.adapter)
        if generation.num_beams > 1:
            _check_beams(generation)
            if self._processors:
                raise RequestInvalid(
                    "beam search is not supported with the logits processors of this device", field="num_beams"
                )
            if self._pipeline:
                raise RequestInvalid("beam search is not supported for vision models", field="num_beams")
        context = self._facts.context_length
        prompt, limit = prepare(
            generation,
            self._tokenizing,
            context_length=context,
            vocab_size=self._facts.vocab_size,
            pictures=seen.tokens if seen else (),
        )
        answers = [self._answer(generation, prompt, limit, choice) for choice in range(generation.n)]
        if seen or generation.num_beams > 1:
            self._room.check_whole(len(prompt) * generation.num_beams, "prompt" if generation.prompt else "messages")
        length = self._room.length(generation, len(prompt), len(prompt) + answers[0].limit)
        for answer in answers:
            answer.keep_within(length - len(prompt) + 1)
        kv_bytes = length * self._room.token_bytes * generation.num_beams
        self._choices.expect(generation)
        return GeneratorSequence(answers, length, kv_bytes, partial(self._generator, adapter=adapter), seen=seen)

    def _answer(self, generation: Generation, prompt: list[int], limit: int, choice: int) -> TokenSequence:
        constraint = constrain(generation, prompt, self._tokenizing, self._grammars)
        rules = LogitRules(constraint, self._processors)
        return TokenSequence(generation, prompt, limit, self._tokenizing, rules, choice=choice)

    def _shows_all_logits(self) -> bool:
        with runtime_errors("the model cannot be tried"):
            generator = self._generator({"max_length": rounded(2, self._facts.context_length, self._least_cache)})
            generator.append_tokens(np.array([self._tokenizing.eos[0]] * 2, dtype=np.int32))
            return bool(generator.get_output("logits").shape[1] > 1)

    def _start_waiting(self) -> None:
        used = sum(turn.kv_bytes for turn in self._active)
        while self._waiting and len(self._active) < SLOTS:
            if used + self._waiting[0].kv_bytes > self._room.budget:
                break
            turn = self._waiting.popleft()
            with runtime_errors("no memory for a request"):
                turn.start()
            used += turn.kv_bytes
            self._active.append(turn)

    def _generator(self, options: dict[str, Any], adapter: str | None = None) -> Any:
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(**{"do_sample": False, **options})
        generator = self._og.Generator(self._model, parameters)
        self._adapters.activate(generator, adapter)
        return generator


def _check_beams(generation: Generation) -> None:
    """Beam search chooses for itself.

    Raises:
        RequestInvalid: a field that it would ignore.
    """
    ignored = {
        "temperature": generation.temperature > 0,
        "logprobs": generation.logprobs,
        "logit_bias": bool(generation.logit_bias),
        "presence_penalty": generation.presence_penalty != 0,
        "frequency_penalty": generation.frequency_penalty != 0,
        "response_format": generation.grammar is not None,
        "tools": generation.tools is not None,
    }
    for field, given in ignored.items():
        if given:
            raise RequestInvalid(
                f"beam search does not support {field}", field="num_beams" if field == "pictures" else field
            )


def _overlay(threads: int, kernels: Kernels) -> dict[str, Any]:
    """What the device decides, laid over the bundle's configuration. Spinning longer burns a core for nothing; warnings
    would name every place for an adapter.
    """
    options = {"intra_op_num_threads": threads, "session.intra_op.spin_duration_us": "50", "log_severity_level": 3}
    return {"model": {"decoder": {"session_options": options | kernels.entries}}}
