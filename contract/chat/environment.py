"""The Jinja that chat templates are written for: that of transformers, whose models they belong to.

Everything a template can tell is as in ``transformers.utils.chat_template_utils`` (5.23): the options, ``tojson``,
``raise_exception``, ``strftime_now``, ``namespace``, ``dict``, ``{% generation %}`` and loop controls. Beyond its
sandbox, products and powers that would take minutes or gigabytes are refused, and ``lipsum`` is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_POWER_BITS = 1 << 16
"""Of a power's result: more than any template counts to."""


class Raised(jinja2.TemplateError):
    """What a template says with ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %}`` marks what the model wrote, for training; it renders as what is in it."""

    tags = {"generation"}  # noqa: RUF012 - as the class it extends

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """``dict`` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """Takes no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        found = dict(*args, **kwargs)
        for name in found:
            _check_name(name)
        Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int) and len(many) * times > MAX_RANGE:
                    raise OverflowError(f"a product of more than {MAX_RANGE} pieces")
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_POWER_BITS:
            raise OverflowError(f"a power of more than {MAX_POWER_BITS} bits")
        return super().call_binop(context, operator, left, right)


def make_environment(now: Callable[[], datetime]) -> jinja2.Environment:
    """A sandbox for one template; ``now`` is what ``strftime_now`` tells."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise, strftime_now=lambda form: now().strftime(form), dict=_Dict(), namespace=_Namespace
    )
    del environment.globals["lipsum"]
    return environment


def _raise(message: Any) -> None:
    raise Raised(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
