"""Conversations in the forms that requests have, to see whether the runtime renders a template as Jinja does."""

from __future__ import annotations

from typing import Any

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "Where is it?"}],
    "a system message": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"}],
    "an empty system message": [{"role": "system", "content": ""}, {"role": "user", "content": "Where is it?"}],
    "several turns": [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "Over there."},
        {"role": "user", "content": "  And the\nother? "},
    ],
    "a thought in the history": [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "<think>\nHere or there?\n</think>\n\nOver there."},
        {"role": "user", "content": "And the other?"},
    ],
}  # fmt: skip
