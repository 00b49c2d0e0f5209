"""A change of a syntax tree is told in names, and a name that is not there ends the run before anything is tried."""

from __future__ import annotations

import ast

import pytest

from tests.sabotage.__main__ import main
from tests.sabotage.checks import Check
from tests.sabotage.mutation import (
    Mutation,
    always,
    arguments,
    base,
    body,
    call,
    condition,
    drop,
    drop_keyword,
    drop_operand,
    handler,
    instead,
    let_through,
    loop,
    never,
    optional,
    returns,
    swap,
    value,
)  # fmt: skip
from tests.sabotage.removal import without

SOURCE = """
LIMIT = 3

class Store(Base):
    name: str
    size: int

    def keep(self, data, floor):
        if len(data) > LIMIT:
            raise TooLarge(data)
        if data in self.known or not self.ready:
            return False
        try:
            self.write(data, mode=0o600)
            floor.raise_to(data)
        except OSError as error:
            raise Broken from error
        for each in floor.roles(self):
            check(each)
        parsed = parse(data)
        return bool(parsed)
"""
KEEP = "m:Store.keep"


@pytest.mark.parametrize(
    ("mutation", "old", "new"),
    [
        (never(KEEP, "LIMIT"), "len(data) > LIMIT", "False"),
        (always(KEEP, "LIMIT"), "len(data) > LIMIT", "True"),
        (condition(KEEP, "LIMIT", new="data is None"), "len(data) > LIMIT", "data is None"),
        (let_through(KEEP, "LIMIT", by="return True"), "raise TooLarge(data)", "return True"),
        (handler(KEEP, "OSError", does="pass"), "raise Broken from error", "pass"),
        (loop(KEEP, "roles", over="()"), "floor.roles(self)", "()"),
        (drop(KEEP, "raise_to"), "floor.raise_to(data)", "pass"),
        (instead(KEEP, "check", do="self.ready"), "check(each)", "self.ready"),
        (drop_operand(KEEP, "ready"), "data in self.known or not self.ready", "data in self.known"),
        (returns(KEEP, "bool", new="data"), "bool(parsed)", "data"),
        (call(KEEP, "parse", becomes="data"), "parse(data)", "data"),
        (arguments(KEEP, of="write(..., mode=0)"), "self.write(data, mode=384)", "self.write(data, mode=0)"),
        (drop_keyword(KEEP, "mode"), "self.write(data, mode=384)", "self.write(data)"),
        (value("m:LIMIT", new="9"), "LIMIT = 3", "LIMIT = 9"),
        (value(KEEP, "parse", new="data"), "parsed = parse(data)", "parsed = data"),
        (base("m:Store", new="object"), "Store(Base)", "Store(object)"),
        (optional("m:Store", "name", default="''"), "name: str\n    size: int", "size: int\n    name: str = ''"),
    ],
    ids=lambda value: value.change if isinstance(value, Mutation) else "",
)
def test_a_change_is_the_one_that_is_told(mutation: Mutation, old: str, new: str) -> None:
    plain = ast.unparse(ast.parse(SOURCE))
    assert plain.count(old) == 1
    assert ast.unparse(without(SOURCE, [mutation])) == plain.replace(old, new)


def test_a_body_is_replaced_and_statements_change_their_places() -> None:
    assert ast.unparse(without(SOURCE, [body(KEEP, new="return")])).endswith("floor):\n        return")
    lines = ast.unparse(without(SOURCE, [swap(KEEP, "write", "raise_to")])).splitlines()
    assert lines.index("            floor.raise_to(data)") + 1 == lines.index("            self.write(data, mode=384)")


def test_layout_and_surroundings_do_not_matter() -> None:
    rewritten = SOURCE.replace("if len(data) > LIMIT:", "if (  # why\n            len( data )\n            > LIMIT ):")
    cut = never(KEEP, "LIMIT")
    assert rewritten != SOURCE
    assert ast.dump(without(rewritten, [cut])) == ast.dump(without(SOURCE, [cut]))


@pytest.mark.parametrize(
    ("mutation", "said"),
    [
        (never("m:Store.keeps", "LIMIT"), "m has no Store.keeps; did you mean keep"),
        (never("m:Shop.keep", "LIMIT"), "m has no Shop.keep"),
        (value("m:LIMITS", new="1"), "m has no LIMITS; did you mean LIMIT"),
        (never(KEEP, "BOUND"), "0 parts of it are meant"),
        (never(KEEP), "2 parts of it are meant"),
        (drop_keyword(KEEP, "missing"), "0 parts of it are meant"),
        (arguments(KEEP, of="write(..., times=0)"), "write is given no times"),
        (swap(KEEP, "write", "flush"), "no block has two such statements"),
        (returns(KEEP, "bool", new="self._unsaid"), "knows no '_unsaid'"),
        (returns(KEEP, "bool", new="unsaid"), "knows no 'unsaid'"),
        (value("m:LIMIT", new="3"), "nothing is changed by it"),
    ],
    ids=lambda value: "" if isinstance(value, Mutation) else value.split(";")[0],
)
def test_what_is_not_there_or_not_once_is_an_error(mutation: Mutation, said: str) -> None:
    with pytest.raises(LookupError) as caught:
        without(SOURCE, [mutation])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("mutation", "said"),
    [
        (never("contract.identifiers:check_pathology", "part"), "contract.identifiers has no check_pathology"),
        (never("contract.identifier:check_path", "part"), "there is no module contract.identifier"),
        (never("contracts.identifiers:check_path", "part"), "there is no module contracts.identifiers"),
    ],
)
def test_a_run_with_a_name_that_is_not_there_tries_nothing(
    mutation: Mutation, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Check("good", (never("contract.identifiers:check_path", "startswith", "/"),), ("no/such/test.py::test",))
    assert main([], [good, Check("renamed", (mutation,), ())]) == 1
    out = capsys.readouterr().out
    assert out.startswith("the table does not fit the code, nothing was tried:\n")
    assert f"renamed: {said}" in out
    assert "good" not in out
