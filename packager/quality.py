"""The text that quality is measured on, when no other is given."""

from __future__ import annotations

TEXT_NAME = "pydoc_data.topics"
TEXT_CHARACTERS = 24_000
"""More than the tokens that are read of it need, in any tokenizer."""


def reference_text() -> str:
    """English reference prose that ships with CPython: the longest topics of its language reference.

    The same on every host with the same Python minor version; the manifest names it.
    """
    from pydoc_data.topics import topics

    ordered = sorted(topics.items(), key=lambda item: (-len(item[1]), item[0]))
    return "\n".join(text for _, text in ordered[:6])[:TEXT_CHARACTERS]
