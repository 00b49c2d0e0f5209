"""What is done to a definition to take a check out of it: a change of its syntax tree, told in names.

A :class:`Mutation` names a definition (``contract.trust.store:TrustStore.keep``, or a constant of a module), the kind
of change, and words that say which part of the definition is meant: names, attributes, keywords and literals that occur
in it. Neither layout nor what surrounds that part matters; a part that is missing or not the only one is an error.
"""

from __future__ import annotations

from msgspec import Struct


class Mutation(Struct, frozen=True):
    """``change`` is a key of :data:`tests.sabotage.changes.CHANGES`; ``new`` is what it puts in place, as Python."""

    place: str
    change: str
    words: tuple[str, ...] = ()
    new: str = ""

    @property
    def module(self) -> str:
        return self.place.partition(":")[0]

    @property
    def name(self) -> str:
        """The definition's qualified name within the module."""
        return self.place.partition(":")[2]

    def __str__(self) -> str:
        return f"{self.place}, {self.change} {' '.join(self.words)}".rstrip()


def never(place: str, *words: str) -> Mutation:
    """The ``if`` with these words in its condition is never taken."""
    return Mutation(place, "never", words)


def always(place: str, *words: str) -> Mutation:
    """The ``if`` with these words in its condition is always taken."""
    return Mutation(place, "always", words)


def condition(place: str, *words: str, new: str) -> Mutation:
    """The ``if`` with these words in its condition asks something else."""
    return Mutation(place, "condition", words, new)


def let_through(place: str, *words: str, by: str) -> Mutation:
    """The ``if`` with these words in its condition does ``by`` and nothing else."""
    return Mutation(place, "let through", words, by)


def handler(place: str, error: str, *, does: str) -> Mutation:
    """What catches ``error`` does this alone."""
    return Mutation(place, "handler", (error,), does)


def loop(place: str, *words: str, over: str) -> Mutation:
    """The ``for`` with these words in what it goes through goes through something else."""
    return Mutation(place, "loop", words, over)


def drop(place: str, *words: str) -> Mutation:
    """The simple statement with these words does nothing."""
    return Mutation(place, "statement", words, "pass")


def instead(place: str, *words: str, do: str) -> Mutation:
    """The simple statement with these words becomes ``do``."""
    return Mutation(place, "statement", words, do)


def drop_operand(place: str, *words: str) -> Mutation:
    """The operand of an ``and`` or ``or`` with these words is left out."""
    return Mutation(place, "operand", words)


def returns(place: str, *words: str, new: str) -> Mutation:
    """The ``return`` with these words returns ``new``."""
    return Mutation(place, "return", words, new)


def call(place: str, *words: str, becomes: str) -> Mutation:
    """The call of the first word becomes the value ``becomes``."""
    return Mutation(place, "call", words, becomes)


def arguments(place: str, *words: str, of: str) -> Mutation:
    """The call gets the arguments of the call ``of``, where an ellipsis keeps what is there."""
    return Mutation(place, "arguments", words, of)


def drop_keyword(place: str, word: str) -> Mutation:
    """The call with this keyword goes without."""
    return Mutation(place, "keyword", (word,))


def value(place: str, *words: str, new: str) -> Mutation:
    """The constant, or what the assignment with these words in the definition binds, becomes ``new``."""
    return Mutation(place, "value", words, new)


def body(place: str, *, new: str) -> Mutation:
    """The function does this alone."""
    return Mutation(place, "body", (), new)


def base(place: str, *, new: str) -> Mutation:
    """The class has another base."""
    return Mutation(place, "base", (), new)


def swap(place: str, first: str, second: str) -> Mutation:
    """Two statements of one block change their places."""
    return Mutation(place, "swap", (first, second))


def optional(place: str, field: str, *, default: str) -> Mutation:
    """The field may be missing."""
    return Mutation(place, "optional", (field,), default)
