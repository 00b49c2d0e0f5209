"""What OpenAI's interface has and a device does not: said by name, with the way that leads where there is one. Pure.

What changes no answer (``user``, ``service_tier``, ``prediction`` …) is taken and has no effect; what would change it
is refused, unless its value asks for nothing: ``modalities: ["text"]``, ``store: false``.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from contract.errors import Fault
from contract.mqtt.conversation import Message
from contract.mqtt.requests import GenerateRequest

DEFAULT_VERBOSITY = "medium"
"""As OpenAI documents it."""


def unsupported(request: GenerateRequest) -> Iterator[Fault]:
    """Every member of ``request`` that asks for what no device does."""
    if request.n > 1 and request.num_beams > 1:
        yield Fault("n", "beam search gives one answer: leave n out, or num_beams")
    if request.store:
        yield Fault("store", "a device keeps no answers for later: leave store out, or say false")
    if request.modalities is not UNSET and "audio" in request.modalities:
        yield Fault("modalities", 'a device answers in text alone: leave modalities out, or say ["text"]')
    if request.verbosity not in (UNSET, DEFAULT_VERBOSITY):
        yield Fault("verbosity", "the model has no verbosity: say in the prompt how long the answer is to be")
    if request.audio is not UNSET:
        yield Fault("audio", "a device answers in text alone: leave audio out")
    if request.moderation is not UNSET:
        yield Fault("moderation", "a device moderates nothing: leave moderation out")
    if request.web_search_options is not UNSET:
        yield Fault("web_search_options", "a device searches nothing: leave web_search_options out")
    yield from _tools(request)
    for number, message in enumerate([] if request.messages is UNSET else request.messages):
        yield from _message(message, f"messages[{number}]")


def _tools(request: GenerateRequest) -> Iterator[Fault]:
    if request.functions is not UNSET and request.functions:
        yield Fault("functions", "functions are called tools now: did you mean `tools`?", "tools")
    if request.function_call not in (UNSET, "none", "auto"):
        yield Fault(
            "function_call", "function_call is called tool_choice now: did you mean `tool_choice`?", "tool_choice"
        )


def _message(message: Message, path: str) -> Iterator[Fault]:
    if message.audio is not UNSET:
        yield Fault(f"{path}.audio", "a device reads text and pictures alone: leave audio out")
    if message.function_call is not UNSET:
        yield Fault(
            f"{path}.function_call", "function_call is called tool_calls now: did you mean `tool_calls`?", "tool_calls"
        )
