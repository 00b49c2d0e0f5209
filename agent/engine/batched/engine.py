"""Continuous batching behind the stepping interface: requests come in, pictures are looked at, and answers go out.

What a step does is :mod:`agent.engine.batched.batch`; how a model gets there is :mod:`agent.engine.batched.opening`.
Pictures are looked at in a thread beside; in a prompt they are tokens like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from agent.engine.batched.batch import Batch
from agent.engine.batched.opening import ReadyModel
from agent.engine.choices import Choices
from agent.engine.interface import CanaryScore, Facts, FinishEvent, Generation, StepEvent
from agent.engine.pictures.features import Features
from agent.engine.processors import Processors
from agent.engine.runtime_errors import runtime_errors
from agent.engine.scoring import SCORE_SLICE, canary_score, token_losses
from agent.engine.sequence import LogitRules, TokenSequence, constrain, prepare, rejection, with_changes
from contract.errors import EngineFailed, RequestInvalid


class BatchedEngine:
    """See :class:`agent.engine.interface.Engine`. ``model`` is this engine's alone, and ends with it; ``verdict`` is
    what the self-test found.
    """

    def __init__(self, model: ReadyModel, processors: Processors | None = None) -> None:
        self.verdict = model.verdict
        self._processors = processors
        self._facts = model.facts
        self._tokenizing = model.tokenizing
        self._grammars = model.grammars
        self._looking = model.looking
        self._batch = Batch(model.runner, model.pool, model.prefixes, model.rules)
        self._events: list[StepEvent] = []
        self._choices = Choices()

    @property
    def facts(self) -> Facts:
        return self._facts

    def computed_by(self, kernels: str) -> None:
        self._facts = replace(self._facts, kernels=kernels)

    @property
    def busy(self) -> bool:
        return self._at_work or (self._looking is not None and self._looking.busy)

    @property
    def _at_work(self) -> bool:
        return bool(self._events) or self._batch.busy

    @property
    def next_read(self) -> int:
        return self._batch.next_read

    def admit(self, generation: Generation) -> None:
        """See the interface."""
        try:
            _check(generation)
            if generation.pictures and self._looking is not None:
                self._looking.admit(generation)
            else:
                self._enter(generation)
        except RequestInvalid as refused:
            self._events.append(rejection(generation.request, refused))

    def _enter(self, generation: Generation, features: Sequence[Features] = ()) -> None:
        """Put a request in line whose pictures are known.

        Raises:
            RequestInvalid: it does not fit this model.
        """
        prompt, room = prepare(
            generation,
            self._tokenizing,
            context_length=self._facts.context_length,
            vocab_size=self._facts.vocab_size,
            pictures=[each.tokens for each in features],
        )
        answers = [
            TokenSequence(generation, prompt, room, self._tokenizing, self._rules(generation, prompt), choice=choice)
            for choice in range(generation.n)
        ]
        self._choices.expect(generation)
        self._batch.enter(answers, features)

    def _look(self) -> None:
        """Put in line whose pictures are known by now."""
        if self._looking is None or not self._looking.busy:
            return
        with runtime_errors("the model failed on a picture"):
            for seen in self._looking.advance(idle=not self._at_work):
                try:
                    if seen.refused is not None:
                        raise seen.refused
                    self._enter(seen.generation, seen.features)
                except RequestInvalid as refused:
                    self._events.append(rejection(seen.generation.request, refused))

    def _rules(self, generation: Generation, prompt: list[int]) -> LogitRules:
        return LogitRules(constrain(generation, prompt, self._tokenizing, self._grammars), self._processors)

    def step(self) -> list[StepEvent]:
        """See the interface, and :meth:`Batch.step`. Whose pictures are known by now is read from the next step on, so
        that a picture in one piece is announced.
        """
        events, self._events = self._events, []
        events.extend(self._batch.step())
        self._look()
        merged = self._choices.merge(events)
        while self._choices.abandoned:
            self._batch.drop(self._choices.abandoned.pop())
        return merged

    def update(self, request: int, changes: dict[str, Any]) -> bool:
        if self._looking is not None and (waiting := self._looking.find(request)) is not None:
            fresh = with_changes(waiting, changes)
            self._looking.change(fresh or waiting)
            return fresh is not None
        changed = [answer.change(changes) for answer in self._batch.find(request)]
        return bool(changed) and all(changed)

    def cancel(self, request: int) -> list[StepEvent]:
        if self._looking is not None and self._looking.cancel(request):
            return [FinishEvent(request, "cancelled", "", 0, 0)]
        return self._choices.merge(self._batch.drop(request))

    def release(self) -> None:
        if self._looking is not None:
            self._looking.close()
        self._choices.forget()
        self._batch.release()

    def score(self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None) -> CanaryScore:
        """See the interface.

        Raises:
            EngineFailed: nothing to score, longer than the context, requests are active, or the runtime failed.
        """
        if adapter is not None:
            raise EngineFailed("the batched engine has no adapters")
        if picture is not None and self._looking is None:
            raise EngineFailed("the model of this bundle takes no pictures here")
        if not self._batch.empty or (self._looking is not None and self._looking.busy):
            raise EngineFailed("a canary is scored while nothing else runs")
        with runtime_errors("the model failed on a canary about a picture"):
            seen = None if picture is None or self._looking is None else self._looking.glance(picture)
        ids, first = self._tokenizing.encode_canary(prompt, text, () if seen is None else seen.tokens)
        if len(ids) <= first or len(ids) > self._facts.context_length:
            raise EngineFailed("a canary has no text, or more than the context holds")
        return canary_score(self._losses(ids, first, [] if seen is None else [seen]))

    def _losses(self, ids: Sequence[int], first: int, features: Sequence[Features]) -> list[float]:
        """NLL in nats of each of ``ids[first:]``."""
        runner = self._batch.runner
        positions = runner.find_positions(ids, features)
        losses: list[float] = []
        filled = 0
        size = SCORE_SLICE if runner.shows_all else 1
        with runtime_errors("the model failed on a canary"):
            while filled < len(ids) - 1:
                end = min(filled + size, len(ids) - 1)
                if filled < first - 1:
                    end = self._batch.slicing.piece(ids, filled, min(end, first - 1))
                logits = runner.prefill(0, filled, ids[filled:end], positions=positions)
                if filled >= first - 1:
                    losses.extend(token_losses(logits, ids[filled + 1 : end + 1]))
                filled = end
        return losses


def _check(generation: Generation) -> None:
    """What this engine leaves to others.

    Raises:
        RequestInvalid: naming the field.
    """
    if generation.num_beams > 1:
        raise RequestInvalid(
            'the batched engine has no beam search: the operator may set engine = "genai" in [worker]',
            field="num_beams",
        )
    if generation.adapter is not None:
        raise RequestInvalid("this bundle has no adapters", field="adapter")
