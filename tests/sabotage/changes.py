"""How a :class:`~tests.sabotage.mutation.Mutation` changes the syntax tree of its module."""

from __future__ import annotations

import ast
import builtins
import difflib
from collections.abc import Callable, Iterator
from typing import Any

from tests.sabotage.mutation import Mutation

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def mutate(tree: ast.Module, mutation: Mutation) -> None:
    """Change ``tree``, the tree of the mutation's module.

    Raises:
        LookupError: the definition is not there, or no part of it or several are meant: the table has to follow.
    """
    before = ast.dump(tree)
    _check_names(tree, mutation)
    CHANGES[mutation.change](mutation, _found(tree, mutation))
    ast.fix_missing_locations(tree)
    if ast.dump(tree) == before:
        raise LookupError(f"{mutation}: nothing is changed by it")


def _one(mutation: Mutation, candidates: Iterator[Any]) -> Any:
    """The only one of ``candidates`` in which all the words occur."""
    meant = [node for node in candidates if set(mutation.words) <= _words(_own_part(node))]
    if len(meant) != 1:
        raise LookupError(f"{mutation}: {len(meant)} parts of it are meant, at lines {[m.lineno for m in meant]}")
    return meant[0]


def _expression(mutation: Mutation) -> ast.expr:
    return ast.parse(mutation.new, mode="eval").body


def _statements(mutation: Mutation) -> list[ast.stmt]:
    return ast.parse(mutation.new).body


def _check_names(tree: ast.Module, mutation: Mutation) -> None:
    """What is put in place uses names of the module, so that a renaming is noticed there too."""
    new = ast.parse(mutation.new)
    known = {*_words(tree), *dir(builtins)}
    known |= {alias.name for node in ast.walk(new) if isinstance(node, ast.ImportFrom) for alias in node.names}
    for node in ast.walk(new):
        match node:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name) if name not in known:
                raise LookupError(f"{mutation}: {mutation.module} knows no {name!r}")


def _found(tree: ast.Module, mutation: Mutation) -> Any:
    """The definition, or the statement that binds a constant."""
    inside: Any = tree
    for part in mutation.name.split("."):
        named = {name: node for node in _inside(inside) for name in _bound(node)}
        if part not in named:
            near = ", ".join(difflib.get_close_matches(part, named, cutoff=0.5))
            raise LookupError(f"{mutation.module} has no {mutation.name}{f'; did you mean {near}?' if near else ''}")
        inside = named[part]
    return inside


def _inside(definition: ast.AST) -> Iterator[ast.AST]:
    """What is defined within, not what is defined within that."""
    for child in ast.iter_child_nodes(definition):
        yield child
        if not isinstance(child, _DEFINITIONS):
            yield from _inside(child)


def _bound(node: ast.AST) -> list[str]:
    if isinstance(node, _DEFINITIONS):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _words(node: ast.AST) -> set[str]:
    found: set[str] = set()
    for each in ast.walk(node):
        match each:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word) | ast.keyword(arg=str(word)):
                found.add(word)
            case ast.Constant(value=bytes(data)):
                found.add(data.decode("latin-1"))
            case ast.Constant(value=value):
                found.add(str(value))
            case ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE() | ast.In() | ast.NotIn():
                found.add(type(each).__name__)
    return found


def _own_part(node: ast.AST) -> ast.AST:
    """Where words are looked for: what is followed by a block is known by its head."""
    match node:
        case ast.If(test=part) | ast.For(iter=part) | ast.ExceptHandler(type=ast.expr() as part):
            return part
    return node


def _nodes(definition: ast.AST, *kinds: type[Any]) -> Iterator[Any]:
    return (node for node in ast.walk(definition) if isinstance(node, kinds))


def _blocks(definition: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(definition):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                yield block


def _simple(definition: ast.AST) -> Iterator[ast.stmt]:
    compound = (*_DEFINITIONS, ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
    return (node for block in _blocks(definition) for node in block if not isinstance(node, compound))


def _replace_statement(definition: ast.AST, old: ast.stmt, new: list[ast.stmt]) -> None:
    for block in _blocks(definition):
        for index, statement in enumerate(block):
            if statement is old:
                block[index : index + 1] = new
                return
    raise AssertionError(old)


def _replace_expression(definition: ast.AST, old: ast.expr, new: ast.expr) -> None:
    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return new if node is old else self.generic_visit(node)

    Replace().visit(definition)


def _condition(value: Callable[[Mutation], ast.expr]) -> Callable[[Mutation, Any], None]:
    def change(mutation: Mutation, definition: Any) -> None:
        _one(mutation, _nodes(definition, ast.If)).test = value(mutation)

    return change


def _let_through(mutation: Mutation, definition: Any) -> None:
    _one(mutation, _nodes(definition, ast.If)).body = _statements(mutation)


def _handler(mutation: Mutation, definition: Any) -> None:
    _one(mutation, _nodes(definition, ast.ExceptHandler)).body = _statements(mutation)


def _iterate(mutation: Mutation, definition: Any) -> None:
    _one(mutation, _nodes(definition, ast.For)).iter = _expression(mutation)


def _statement(mutation: Mutation, definition: Any) -> None:
    _replace_statement(definition, _one(mutation, _simple(definition)), _statements(mutation))


def _operand(mutation: Mutation, definition: Any) -> None:
    """One of several conditions in a row."""
    rows = list(_nodes(definition, ast.BoolOp))
    operand = _one(mutation, (each for row in rows for each in row.values))
    row = next(row for row in rows if operand in row.values)
    row.values = [each for each in row.values if each is not operand]
    if len(row.values) == 1:
        _replace_expression(definition, row, row.values[0])


def _return(mutation: Mutation, definition: Any) -> None:
    _one(mutation, _nodes(definition, ast.Return)).value = _expression(mutation)


def _call(mutation: Mutation, definition: Any) -> None:
    """The first word is what is called."""
    called = mutation.words[0]
    calls = (node for node in _nodes(definition, ast.Call) if _name_of(node.func) == called)
    _replace_expression(definition, _one(mutation, calls), _expression(mutation))


def _argument(mutation: Mutation, definition: Any) -> None:
    """``new`` is a whole call, whose arguments are taken instead of those of a call of that name."""
    new = _expression(mutation)
    assert isinstance(new, ast.Call)
    called = _name_of(new.func)
    call = _one(mutation, (node for node in _nodes(definition, ast.Call) if _name_of(node.func) == called))
    given = {keyword.arg: keyword for keyword in call.keywords}
    call.args = [_kept(old, each) for old, each in _beside(call.args, new.args)]
    for keyword in new.keywords:
        if keyword.arg not in given:
            raise LookupError(f"{mutation}: {called} is given no {keyword.arg}")
        given[keyword.arg].value = keyword.value


def _beside(old: list[ast.expr], new: list[ast.expr]) -> list[tuple[ast.expr | None, ast.expr]]:
    kept: list[ast.expr | None] = [*old, *[None] * (len(new) - len(old))]
    return [(each, new[at] if at < len(new) else ast.Constant(...)) for at, each in enumerate(kept)]


def _kept(old: ast.expr | None, new: ast.expr) -> ast.expr:
    """An ellipsis stands for what is there."""
    return old if old is not None and isinstance(new, ast.Constant) and new.value is ... else new


def _keyword(mutation: Mutation, definition: Any) -> None:
    """The only word is the keyword."""
    (word,) = mutation.words
    calls = [node for node in _nodes(definition, ast.Call) if word in {each.arg for each in node.keywords}]
    call = _one(mutation, iter(calls))
    call.keywords = [each for each in call.keywords if each.arg != word]


def _name_of(function: ast.expr) -> str | None:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def _value(mutation: Mutation, definition: Any) -> None:
    if isinstance(definition, _DEFINITIONS):
        definition = _one(mutation, _nodes(definition, ast.Assign, ast.AnnAssign))
    definition.value = _expression(mutation)


def _body(mutation: Mutation, definition: Any) -> None:
    definition.body = _statements(mutation)


def _base(mutation: Mutation, definition: Any) -> None:
    definition.bases = [_expression(mutation)]


def _swap(mutation: Mutation, definition: Any) -> None:
    """Two statements of one block: each is known by one word."""
    for block in _blocks(definition):
        places = [[at for at, each in enumerate(block) if word in _words(each)] for word in mutation.words]
        if [len(place) for place in places] == [1, 1] and places[0] != places[1]:
            (first,), (second,) = places
            block[first], block[second] = block[second], block[first]
            return
    raise LookupError(f"{mutation}: no block has two such statements")


def _optional(mutation: Mutation, definition: Any) -> None:
    """A field gets a default, and so comes after those that have none."""
    field = _one(mutation, _nodes(definition, ast.AnnAssign))
    definition.body.remove(field)
    field.value = _expression(mutation)
    last = max(at for at, each in enumerate(definition.body) if isinstance(each, ast.AnnAssign))
    definition.body.insert(last + 1, field)


CHANGES: dict[str, Callable[[Mutation, Any], None]] = {
    "never": _condition(lambda _: ast.Constant(False)),
    "always": _condition(lambda _: ast.Constant(True)),
    "condition": _condition(_expression),
    "let through": _let_through,
    "handler": _handler,
    "loop": _iterate,
    "statement": _statement,
    "operand": _operand,
    "return": _return,
    "call": _call,
    "arguments": _argument,
    "keyword": _keyword,
    "value": _value,
    "body": _body,
    "base": _base,
    "swap": _swap,
    "optional": _optional,
}
