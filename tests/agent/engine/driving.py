"""Drives an engine to the end of what it was given and sorts what came out by request."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.engine.interface import Engine, FinishEvent, Generation, RejectEvent, StepEvent, TokenEvent

MAX_STEPS = 20_000


@dataclass
class Outcome:
    """Everything that one request was told."""

    tokens: list[TokenEvent] = field(default_factory=list)
    finish: FinishEvent | None = None
    reject: RejectEvent | None = None

    @property
    def text(self) -> str:
        assert self.finish is not None, self.reject
        return "".join(event.text for event in self.tokens) + self.finish.text

    @property
    def reason(self) -> str:
        assert self.finish is not None, self.reject
        return self.finish.reason

    @property
    def refused_field(self) -> str | None:
        assert self.reject is not None
        assert self.reject.code == 400
        assert self.reject.message
        return self.reject.field

    @property
    def refused_kind(self) -> str:
        assert self.reject is not None
        return self.reject.kind


def record(events: list[StepEvent], outcomes: dict[int, Outcome]) -> None:
    """Sort events in; nothing may come after a request's end."""
    for event in events:
        outcome = outcomes.setdefault(event.request, Outcome())
        assert outcome.finish is None and outcome.reject is None, f"{event} after the end"
        if isinstance(event, TokenEvent):
            outcome.tokens.append(event)
        elif isinstance(event, FinishEvent):
            outcome.finish = event
        else:
            outcome.reject = event


def run(engine: Engine, *generations: Generation, outcomes: dict[int, Outcome] | None = None) -> dict[int, Outcome]:
    """Admit all, step until nothing is left to do."""
    found: dict[int, Outcome] = {} if outcomes is None else outcomes
    for generation in generations:
        engine.admit(generation)
    for _ in range(MAX_STEPS):
        if not engine.busy:
            return found
        record(engine.step(), found)
    raise AssertionError("the engine does not come to an end")


def answer(engine: Engine, generation: Generation) -> Outcome:
    """One request on its own."""
    return run(engine, generation)[generation.request]
