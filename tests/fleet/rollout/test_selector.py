"""Selections of devices: what is written is what is meant, and what cannot be meant is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import RequestInvalid
from fleet.rollout.selector import Traits, parse_selector

BOX = Traits(
    device="kitchen-1",
    site="oslo",
    hardware="x86_64 2c 4G",
    arch="x86_64",
    cores=2,
    ram=4 * 2**30,
    bundle="smollm2@1.0.0",
    agent="0.1.0",
    online=True,
    groups=("office", "lab"),
    labels={"rack": "3"},
)


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "site=oslo",
        "site=oslo and ram>=4G",
        "ram >= 4GiB and ram<5g and cores=2",
        "group=lab and group=office",
        "device~kitchen-*",
        "not site=bergen",
        "site=bergen or (site=oslo and label.rack=3)",
        "label.rack in (2, 3)",
        'hardware="x86_64 2c 4G"',
        "bundle=smollm2 and bundle=smollm2@1.0.0",
        "online=true and pinned=FALSE",
        "site!=bergen",
        "NOT (site=bergen OR site=bodo)",
        "not not site=oslo",
    ],
)
def test_selects_what_is_meant(text: str) -> None:
    assert parse_selector(text).matches(BOX)


@pytest.mark.parametrize(
    "text",
    ["site=Oslo", "ram>4G", "cores<2", "group=kitchen", "device~lab-*", "not *", "label.rack=2", "label.row=1",
     "site in (bergen, bodo)", "online=false", "group!=lab", "site=bergen or site=oslo and ram<1G"],
)  # fmt: skip
def test_leaves_out_what_is_not_meant(text: str) -> None:
    assert not parse_selector(text).matches(BOX)


def test_a_device_that_does_not_say_a_number_is_in_no_comparison() -> None:
    unknown = Traits(device="new")
    assert not parse_selector("ram<4G").matches(unknown)
    assert not parse_selector("ram>=4G").matches(unknown)
    assert not parse_selector("ram!=4G").matches(unknown)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty; write `*` for every device"),
        ("   ", "it is empty"),
        ("sit=oslo", "did you mean `site`?"),
        ("grup=lab", "did you mean `group`?"),
        ("site", "it ends where a comparison of site"),
        ("site=", "it ends where a value is expected"),
        ("site=oslo ram>4G", "'ram' at position 11 does not continue the selection: join with `and` or `or`"),
        ("site>oslo", "site is a text and has no order"),
        ("ram=lots", "ram is compared with a number such as 4G, not 'lots'"),
        ("ram~4*", "ram is a number; ~ compares texts"),
        ("(site=oslo", "it ends where `)` is expected"),
        ("site=oslo)", "')' at position 10"),
        ("site in oslo", "'oslo' at position 9 stands where `(` is expected"),
        ("site in (oslo bergen)", "'bergen' at position 15 stands where `,` or `)` is expected"),
        ('site="oslo', 'the quotation mark `"` is not closed at position 6'),
        ("online=yes", "online is true or false, not 'yes'"),
        ("and site=oslo", "'and' at position 1 is not a field"),
        ("site==oslo", "'=' at position 6 stands where a value is expected"),
        ("(" * 100 + "*" + ")" * 100, "nested deeper than 32 levels"),
        ("not " * 100 + "*", "nested deeper than 32 levels"),
        ("*" * 5000, "4096 at most"),
    ],
)
def test_says_what_is_wrong_and_where(text: str, words: str) -> None:
    with pytest.raises(RequestInvalid) as raised:
        parse_selector(text)
    assert words in raised.value.message
    assert raised.value.field == "where"


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_selector(text).matches(BOX)
    except RequestInvalid as error:
        assert error.field == "where"
