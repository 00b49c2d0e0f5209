"""What came of an answer so far: text, thought and calls of functions, collected from pieces. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from agent.engine.interface import CallDelta
from contract.mqtt.tools import CallFragment, FunctionCall, ToolCall, ToolCallDelta


class Output:
    """Pieces in their order, to be joined when they are asked for."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: dict[int, list[CallDelta]] = {}

    def add(self, text: str, thought: str = "", calls: Sequence[CallDelta] = ()) -> None:
        """More came."""
        if text:
            self._texts.append(text)
        if thought:
            self._thoughts.append(thought)
        for delta in calls:
            self._calls.setdefault(delta.index, []).append(delta)

    def clear(self) -> None:
        """It was taken."""
        self._texts.clear()
        self._thoughts.clear()
        self._calls.clear()

    def __bool__(self) -> bool:
        """Whether anything came."""
        return bool(self._texts or self._thoughts or self._calls)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def thought(self) -> str | UnsetType:
        return "".join(self._thoughts) if self._thoughts else UNSET

    @property
    def fragments(self) -> list[ToolCallDelta] | UnsetType:
        """More of calls, one fragment of each; what begins here has its id and its name."""
        found = []
        for index, deltas in self._calls.items():
            first, arguments = deltas[0], "".join(delta.arguments for delta in deltas)
            if first.name:
                function = CallFragment(name=first.name, arguments=arguments)
                found.append(ToolCallDelta(index, function, id=first.id, type="function"))
            else:
                found.append(ToolCallDelta(index, CallFragment(arguments=arguments)))
        return found or UNSET

    @property
    def calls(self) -> list[ToolCall] | UnsetType:
        """Calls from their beginning."""
        found = [
            ToolCall(deltas[0].id, FunctionCall(deltas[0].name, "".join(delta.arguments for delta in deltas)))
            for _, deltas in sorted(self._calls.items())
        ]
        return found or UNSET
