"""Several answers to one request (``n``): their events become those of one request, which ends once all have. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from agent.engine.interface import FinishEvent, Generation, RejectEvent, StepEvent, TokenEvent


class Choices:
    """Knows the requests that want more than one answer; events of all others pass as they are.

    ``abandoned`` are requests that were rejected while other answers to them went on: whoever made those drops them.
    """

    def __init__(self) -> None:
        self._ended: dict[int, dict[int, FinishEvent]] = {}
        self._wanted: dict[int, int] = {}
        self.abandoned: list[int] = []

    def expect(self, generation: Generation) -> None:
        """Answers to ``generation`` are on their way."""
        if generation.n > 1:
            self._wanted[generation.request] = generation.n
            self._ended[generation.request] = {}

    def forget(self) -> None:
        """Nothing of all that was expected will come."""
        self._ended.clear()
        self._wanted.clear()
        self.abandoned.clear()

    def merge(self, events: list[StepEvent]) -> list[StepEvent]:
        """``events`` of single answers as events of requests, in their order."""
        if not self._wanted:
            return events
        found: list[StepEvent] = []
        for event in events:
            if event.request in self.abandoned:
                continue
            if event.request not in self._wanted or isinstance(event, TokenEvent):
                found.append(event)
            elif isinstance(event, RejectEvent):
                self._drop(event.request)
                self.abandoned.append(event.request)
                found.append(event)
            else:
                found.extend(self._end(event))
        return found

    def _end(self, event: FinishEvent) -> list[StepEvent]:
        """One answer is over: the end of its request, or only its last text."""
        ended = self._ended[event.request]
        ended[event.choice] = event
        if len(ended) == self._wanted[event.request]:
            self._drop(event.request)
            first = ended[0]
            whole = replace(
                event,
                reason=first.reason,
                reasons=[ended[choice].reason for choice in sorted(ended)],
                completion_tokens=sum(each.completion_tokens for each in ended.values()),
                prompt_tokens=first.prompt_tokens,
                cached_tokens=first.cached_tokens,
            )
            return [whole]
        if not (event.text or event.thought or event.calls):
            return []
        return [
            TokenEvent(
                event.request,
                event.text,
                event.completion_tokens,
                thought=event.thought,
                calls=event.calls,
                choice=event.choice,
            )
        ]

    def _drop(self, request: int) -> None:
        del self._wanted[request], self._ended[request]
