"""What a prompt asks of the double.

``count N`` is answered with N tokens; any other prompt with three. ``hold`` gives one token and then waits to be let
go, ``wait`` gives none until then. ``reject`` is refused as an overlong prompt is. With tools, the double thinks and
calls the first of them with the prompt's last word. ``read N SECONDS`` reads N tokens in one piece, for so long.

The words of :data:`MISHAPS` end a worker, each in its way, as prompts and as what is to be scored.
"""

from __future__ import annotations

from msgspec import Struct

from agent.engine.interface import Generation

MISHAPS = frozenset({"crash", "killed", "raise", "surprise", "exit", "hang", "garbage", "environment"})

TOKENS = 3
"""Of an answer to a prompt that does not say how many."""


class Script(Struct, frozen=True):
    """``pause``: tokens after which the answer waits to be let go. ``read``: tokens and seconds of one long step."""

    tokens: int
    words: int
    limited: bool = False
    pause: int | None = None
    rejected: bool = False
    calls: tuple[str, str] | None = None
    read: tuple[int, float] = (0, 0.0)
    mishap: str | None = None


def prompt_of(generation: Generation) -> str:
    """The prompt, or the last message without its pictures."""
    if generation.messages is None:
        return generation.prompt or ""
    content = generation.messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part or "" for part in content)


def read_script(generation: Generation) -> Script:
    """What the double does with a request."""
    words = prompt_of(generation).split() or [""]
    first = words[0]
    wanted = int(words[1]) if len(words) > 1 and words[1].isdigit() and first != "read" else TOKENS
    wanted = max(wanted, generation.min_tokens)
    limits = [limit for limit in (generation.max_tokens, generation.max_tokens_limit) if limit is not None]
    tools = generation.tools
    calls = None
    if tools is not None and tools.choice != "none":
        calls = (tools.definitions[0]["function"]["name"], words[-1])
    return Script(
        min([wanted, *limits]),
        len(words),
        limited=any(wanted > limit for limit in limits),
        pause={"hold": 1, "wait": 0}.get(first),
        rejected=first == "reject",
        calls=calls,
        read=(int(words[1]), float(words[2])) if first == "read" else (0, 0.0),
        mishap=first if first in MISHAPS else None,
    )
