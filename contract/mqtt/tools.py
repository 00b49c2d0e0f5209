"""Functions that a model may call, as in OpenAI's chat completions: definitions, choice, calls and results. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from contract.errors import Fault
from contract.schema_faults import nearest

MAX_TOOLS = 128
MAX_CALLS = 128
"""In one message."""

MAX_DESCRIPTION = 16 << 10
"""Characters."""

MAX_SCHEMA_BYTES = 64 << 10
"""Of one function's parameters, as JSON: what a model is to read is much less."""

MAX_SCHEMA_DEPTH = 24
"""Objects and lists within each other. OpenAI allows ten levels of properties, a request 32 levels in all."""

FunctionName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$(?!\n)", extra={"expected": "1 to 64 of A-Z a-z 0-9 _ -"})
]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]


class FunctionDefinition(Struct, frozen=True, forbid_unknown_fields=True):
    """``parameters`` is the JSON schema of an object; without it the function takes none. ``strict`` changes nothing:
    arguments always keep to their schema.
    """

    name: FunctionName
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)] | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
    strict: bool | UnsetType = UNSET


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(Struct, frozen=True, forbid_unknown_fields=True):
    name: FunctionName


class ToolChoice(Struct, frozen=True, forbid_unknown_fields=True):
    """The one function that must be called."""

    type: Literal["function"]
    function: FunctionReference


class FunctionCall(Struct, frozen=True, forbid_unknown_fields=True):
    """``arguments`` is a JSON object, as text."""

    name: FunctionName
    arguments: str


class ToolCall(Struct, frozen=True, forbid_unknown_fields=True):
    """A call that an answer made. ``index`` is its place among those of the answer, where one is sent back with it."""

    id: CallId
    function: FunctionCall
    type: Literal["function"] = "function"
    index: int | UnsetType = UNSET


class CallFragment(Struct, frozen=True, omit_defaults=True):
    """More of a call's ``name`` or ``arguments``."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True, omit_defaults=True):
    """More of the call ``index``; the first one has ``id``, ``type`` and the function's name."""

    index: int
    function: CallFragment
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Turn(Protocol):
    """A message, as far as calls go."""

    @property
    def role(self) -> str: ...
    @property
    def tool_calls(self) -> Sequence[ToolCall] | UnsetType: ...
    @property
    def tool_call_id(self) -> str | UnsetType: ...


def tool_faults(tools: Sequence[Tool], choice: str | ToolChoice | UnsetType) -> Iterator[Fault]:
    """What is wrong with the functions of a request, beside types and ranges."""
    names: dict[str, int] = {}
    for number, tool in enumerate(tools):
        path = f"tools[{number}].function"
        first = names.setdefault(tool.function.name, number)
        if first != number:
            yield Fault(f"{path}.name", f"tools[{first}] has this name, too: give each function one of its own")
        if tool.function.parameters is not UNSET:
            yield from _schema_faults(tool.function.parameters, f"{path}.parameters")
    if isinstance(choice, ToolChoice):
        wanted = choice.function.name
        if wanted not in names:
            near = nearest(wanted, sorted(names))
            hint = "" if near is None else f"; did you mean `{near}`?"
            yield Fault("tool_choice.function.name", f"there is no function of this name in tools{hint}", near)
    elif choice == "required" and not tools:
        yield Fault("tool_choice", "a call is required and there are no tools: give tools, or leave tool_choice out")


def _schema_faults(schema: dict[str, Any], path: str) -> Iterator[Fault]:
    kind = schema.get("type", "object")
    if kind != "object":
        yield Fault(f"{path}.type", 'the arguments of a function are an object: say "object"')
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        yield Fault(path, f"a schema is at most {MAX_SCHEMA_DEPTH} levels deep")
    elif len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        yield Fault(path, f"a schema has at most {MAX_SCHEMA_BYTES >> 10} KiB")


def _depth(value: Any) -> int:
    deepest, left = 0, [(value, 1)]
    while left:
        found, depth = left.pop()
        if isinstance(found, dict | list):
            deepest = max(deepest, depth)
            left.extend((inner, depth + 1) for inner in (found.values() if isinstance(found, dict) else found))
    return deepest


def history_faults(turns: Sequence[Turn]) -> Iterator[Fault]:
    """Calls of others than the model, arguments that are no object, and results of calls that nobody made."""
    made: dict[str, str] = {}
    for number, turn in enumerate(turns):
        path = f"messages[{number}]"
        if turn.tool_calls is not UNSET and turn.tool_calls:
            if turn.role != "assistant":
                yield Fault(f"{path}.tool_calls", "calls belong to the role assistant")
            for index, call in enumerate(turn.tool_calls):
                made[call.id] = call.function.name
                if read_arguments(call.function.arguments) is None:
                    yield Fault(
                        f"{path}.tool_calls[{index}].function.arguments",
                        f"arguments are a JSON object, as text, {MAX_SCHEMA_DEPTH} levels deep at most",
                    )
        if turn.role != "tool":
            if turn.tool_call_id is not UNSET:
                yield Fault(f"{path}.tool_call_id", "this belongs to the role tool")
        elif turn.tool_call_id is UNSET:
            yield Fault(f"{path}.tool_call_id", "a result names the call that it is of: give the id of that call")
        elif turn.tool_call_id not in made:
            near = nearest(turn.tool_call_id, sorted(made))
            hint = "" if near is None else f"; did you mean `{near}`?"
            yield Fault(f"{path}.tool_call_id", f"no message before this one makes a call of this id{hint}", near)


def read_arguments(text: str) -> dict[str, Any] | None:
    """The object that ``text`` is; an empty text stands for an empty one. None: it is something else."""
    if not text.strip():
        return {}
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    return found if _depth(found) <= MAX_SCHEMA_DEPTH else None
