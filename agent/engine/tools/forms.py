"""How families of models write calls and thoughts, and which family a chat template is of.

The one rule: the first of :data:`RULES` whose marks all stand in the template decides. A model learned its form
together with its template, so that nothing else has to be known of it. A template with none of these marks has no form
of its own for calls: the model is told of the generic one in words.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Definitions = Literal["template", "message", "words"]
"""How functions get into the prompt: the template's own ``tools``, the ``tools`` of a system message, or our words."""


class CallForm(Struct, frozen=True, kw_only=True):
    """The texts around names and arguments.

    Calls stand at the end of an answer: ``begin``, ``lead``, calls with ``between`` between them, ``end``. Where
    ``begin`` is empty, they are the whole answer (after ``may_begin``, perhaps). ``between`` None: one call an answer.
    ``argument_key`` is the name that the words give to the arguments. ``short_ids``: the template takes ids of nine
    letters and digits alone. ``own_history``: the template writes earlier calls, and has a role ``tool``.
    """

    name: str
    begin: str = ""
    may_begin: str = ""
    lead: str = ""
    before_name: str = '{"name": "'
    after_name: str = '", "arguments": '
    after_arguments: str = "}"
    between: str | None = None
    end: str = ""
    definitions: Definitions = "template"
    own_history: bool = True
    result_role: str = "tool"
    argument_key: str = "arguments"
    short_ids: bool = False


HERMES = CallForm(
    name="hermes",
    begin="<tool_call>",
    before_name='\n{"name": "',
    after_arguments="}\n</tool_call>",
    between="\n<tool_call>",
)
"""Qwen 2.5 and 3, Hermes, SmolLM3."""

MISTRAL = CallForm(name="mistral", begin="[TOOL_CALLS]", lead=" [", between=", ", end="]", short_ids=True)
"""Mistral 7B v0.3, Small 2."""

MISTRAL_NEMO = CallForm(name="mistral", begin="[TOOL_CALLS]", lead="[", between=", ", end="]", short_ids=True)
"""Without the space: the tokenizer of Nemo, Ministral and Small 3."""

MISTRAL_ARGUMENTS = CallForm(
    name="mistral",
    begin="[TOOL_CALLS]",
    before_name="",
    after_name="[ARGS]",
    after_arguments="",
    between="[TOOL_CALLS]",
    short_ids=True,
)
"""Mistral since 2025: Small 3.2, Ministral 3, Devstral."""

LLAMA = CallForm(
    name="llama",
    may_begin="<|python_tag|>",
    after_name='", "parameters": ',
    argument_key="parameters",
    result_role="ipython",
)
"""Llama 3.1 and later: one call, and nothing else, is the answer."""

PHI = CallForm(
    name="phi",
    begin="<|tool_call|>",
    lead="[",
    between=", ",
    end="]<|/tool_call|>",
    definitions="message",
    own_history=False,
    result_role="tool_response",
)
"""Phi-4-mini: its template writes the ``tools`` of a system message, and every role as it is."""

GRANITE = CallForm(name="granite", begin="<|tool_call|>", lead="[", between=", ", end="]", own_history=False)

GEMMA = CallForm(
    name="gemma",
    after_name='", "parameters": ',
    between="\n",
    definitions="words",
    own_history=False,
    result_role="user",
    argument_key="parameters",
)
"""Gemma has no form of its own; Google's documentation tells it in words of this one."""

GENERIC = CallForm(name="generic", between="\n", definitions="words", own_history=False, result_role="user")

RULES: tuple[tuple[tuple[str, ...], CallForm], ...] = (
    (("<tool_call>", "tools"), HERMES),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_ARGUMENTS),
    (("[TOOL_CALLS] [",), MISTRAL),
    (("[TOOL_CALLS]",), MISTRAL_NEMO),
    (("ipython", '"parameters": '), LLAMA),
    (("<|tool|>",), PHI),
    (("<|tool_call|>", "tools"), GRANITE),
    (("<start_of_turn>",), GEMMA),
)

MARKERS = frozenset(
    {"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|tool_call|>", "<|/tool_call|>"}
)
"""Texts that may be tokens of their own, which a decoder leaves out."""


class ThoughtForm(Struct, frozen=True):
    """What a model writes around its thoughts, which come before everything else it says."""

    begin: str
    end: str


THOUGHTS = (ThoughtForm("<think>", "</think>"), ThoughtForm("[THINK]", "[/THINK]"))
"""Qwen 3, DeepSeek and its distillates, SmolLM3, Phi-4-mini-reasoning; Magistral and Ministral 3."""


def find_form(template: str) -> CallForm:
    """The form in which a model with this chat template calls functions."""
    return next((form for marks, form in RULES if all(mark in template for mark in marks)), GENERIC)


def find_thoughts(template: str) -> ThoughtForm | None:
    """How a model with this chat template marks its thoughts; None where it is not known to think."""
    return next((form for form in THOUGHTS if form.end in template), None)
