"""Drafts by prompt lookup: what is drafted and how much, that answers stay the same, and when nothing is drafted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.batched.engine import BatchedEngine
from agent.engine.batched.independence import MARGIN, settle_drafting
from agent.engine.batched.self_check import Verification
from agent.engine.batched.speculation import (
    ALLOWED_LOSS,
    LOOKUP,
    MAX_DRAFT,
    STEP_COST,
    DraftPolicy,
    PromptLookup,
    Speculation,
)
from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine, Generation, Independence
from agent.engine.load_options import Mode
from tests.agent.engine import kinds
from tests.agent.engine.conformance.test_generation import ask
from tests.agent.engine.driving import Outcome, answer, record, run
from tests.agent.engine.row_by_row import RowByRow

FEW = st.lists(st.integers(0, 3), max_size=40)
LIST = "one apple, two pears, one apple, two pears, one apple, two pears, one"


@given(FEW, st.lists(st.integers(1, 5), max_size=10), st.integers(1, MAX_DRAFT))
def test_what_followed_the_last_tokens_before_is_drafted(text: list[int], cuts: list[int], count: int) -> None:
    lookup, at = PromptLookup(), 0
    for cut in [*cuts, len(text)]:
        lookup.extend(text[at : at + cut])
        at = min(len(text), at + cut)
    ends = [end for end in range(LOOKUP, len(text)) if text[end - LOOKUP : end] == text[-LOOKUP:]]
    if not ends:
        assert lookup.draft(count) == []
        return
    whole = list(text)
    for place in range(ends[-1], ends[-1] + count):
        whole.append(whole[place])
    assert lookup.draft(count) == whole[len(text) :]


@given(st.lists(st.integers(-2, 2), max_size=40), st.integers(1, MAX_DRAFT))
def test_no_place_of_a_picture_is_ever_drafted(text: list[int], count: int) -> None:
    """What words say before and after a picture they may say again; the picture they cannot."""
    with_pictures, words = PromptLookup(), PromptLookup()
    with_pictures.extend([*text, 1, 2, 3])
    found = with_pictures.draft(count)
    assert all(token >= 0 for token in found)
    words.extend([1, 2, 3, 0, -1, -2, 1, 2, 3])
    assert words.draft(count) == [0]


@given(FEW, FEW, st.integers(0, MAX_DRAFT))
def test_nothing_is_drafted_beyond_the_answers_end(prompt: list[int], generated: list[int], limit: int) -> None:
    speculation = Speculation()
    for end in range(len(generated)):
        assert len(speculation.draft(prompt, generated[:end], limit)) <= limit


@given(st.lists(st.integers(0, MAX_DRAFT), max_size=300))
def test_wrong_drafts_cost_three_tokens_in_a_hundred_at_most(rights: list[int]) -> None:
    """Where a drafted token costs what it is said to cost. ``rights``: how many of a draft are right."""
    policy = DraftPolicy()
    generated, steps = 1, 1.0
    for right in rights:
        drafted = policy.allowed(generated)
        assert 0 <= drafted <= MAX_DRAFT
        accepted = min(right, drafted)
        if drafted:
            policy.note(drafted, accepted)
        steps += 1 + STEP_COST * drafted
        generated += 1 + accepted
        assert steps <= (1 + ALLOWED_LOSS) * generated + 1e-9


def test_text_that_is_copied_is_drafted_in_long_pieces() -> None:
    policy, generated, steps = DraftPolicy(), 1, 1.0
    while generated < 128:
        drafted = policy.allowed(generated)
        if drafted:
            policy.note(drafted, drafted)
        steps += 1 + STEP_COST * drafted
        generated += 1 + drafted
    assert generated / steps > 1.8
    assert policy.allowed(generated) == MAX_DRAFT


@pytest.fixture
def drafts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the drafts that were verified."""
    found: list[int] = []
    note = Speculation.note

    def noted(self: Speculation, drafted: int, accepted: int) -> None:
        found.append(drafted)
        note(self, drafted, accepted)

    monkeypatch.setattr(Speculation, "note", noted)
    return found


@pytest.fixture
def exact(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("agent.engine.batched.opening.Runner", RowByRow)
    engine = open_engine(tiny_bundle, engine="batched", threads=2, reproducible=True)
    yield engine
    engine.release()


@pytest.fixture
def plain(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("agent.engine.batched.opening.Runner", RowByRow)
    engine = open_engine(tiny_bundle, engine="batched", threads=2, reproducible=True, speculation="off")
    yield engine
    engine.release()


def requests() -> list[Generation]:
    """Everything that decides what comes next, behind a text that repeats itself."""
    likely = dict.fromkeys((40, 41, 42), 4.0)  # so few that drafts are often right, and often not
    kinds_of = [
        {},
        {"max_tokens": None},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 1.3, "seed": 6, "top_p": 0.8, "logit_bias": likely},
        {"logprobs": True, "top_logprobs": 3},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4},
        {"stops": ("e",), "min_tokens": 20},
        {"grammar": ("regex", "(one|two|apples? ){3,20}")},
        {"n": 2, "temperature": 0.8, "seed": 3},
    ]
    fields = [{"prompt": LIST, "max_tokens": 48, "min_tokens": 30, **each} for each in kinds_of]
    return [ask(number, client=f"client {number}", **each) for number, each in enumerate(fields)]


def told(outcome: Outcome) -> tuple[list[object], object]:
    """Everything: texts, places, log-probabilities, the end."""
    return list(outcome.tokens), outcome.finish


def test_with_drafts_every_answer_is_the_same_bit_for_bit(exact: Engine, plain: Engine, drafts: list[int]) -> None:
    assert exact.facts.speculation == "prompt lookup: a verified draft gives the same bits"
    assert exact.facts.independence.reproducible
    assert plain.facts.speculation == "off ([worker] speculation)"
    without = {each.request: told(answer(plain, each)) for each in requests()}
    assert not drafts, "nothing is drafted where that is off"
    for each in requests():
        assert told(answer(exact, each)) == without[each.request], each
    assert len(drafts) > 20
    assert max(drafts) == MAX_DRAFT


def test_who_is_not_alone_gets_no_drafts_and_the_same_answer(exact: Engine, drafts: list[int]) -> None:
    pair = [requests()[0], requests()[2]]
    alone = {each.request: told(answer(exact, each))[0] for each in pair}
    assert drafts
    drafts.clear()
    outcomes: dict[int, Outcome] = {}
    for each in pair:
        exact.admit(each)
    while not outcomes or all(outcome.finish is None for outcome in outcomes.values()):
        record(exact.step(), outcomes)
    assert not drafts
    run(exact, outcomes=outcomes)
    assert {number: told(outcome)[0] for number, outcome in outcomes.items()} == alone


def test_an_answer_is_cut_off_between_two_drafts(exact: Engine) -> None:
    exact.admit(ask(prompt=LIST, max_tokens=400, min_tokens=400))
    outcomes: dict[int, Outcome] = {}
    while len(outcomes.get(1, Outcome()).tokens) < 60:
        record(exact.step(), outcomes)
    assert exact.update(1, {"max_tokens": len(outcomes[1].tokens) + 3 * (MAX_DRAFT + 1) + 1})
    for _ in range(3):
        record(exact.step(), outcomes)
    record(exact.cancel(1), outcomes)
    assert outcomes[1].reason == "cancelled"
    cut = ask(2, prompt=LIST, max_tokens=400, min_tokens=400)
    exact.admit(cut)
    while len(outcomes.get(2, Outcome()).tokens) < 60:
        record(exact.step(), outcomes)
    assert exact.update(2, {"max_tokens": 70})
    run(exact, outcomes=outcomes)
    assert outcomes[2].reason == "length"
    assert len(outcomes[2].tokens) <= 70
    assert not exact.busy
    assert answer(exact, ask(prompt=LIST, max_tokens=9, min_tokens=9)).reason == "length"


def test_on_this_processor_drafts_are_off_where_bits_are_promised(tiny_bundle: Path) -> None:
    engine = open_engine(tiny_bundle, engine="batched", threads=2, reproducible=True)
    verified = getattr(engine, "verdict").verification  # noqa: B009
    assert engine.facts.speculation.startswith("off:" if verified.logits else "prompt lookup: ")
    engine.release()


def test_an_operator_may_have_drafts_within_a_bound(tiny_bundle: Path) -> None:
    engine = open_engine(tiny_bundle, engine="batched", threads=2, speculation="on")
    assert isinstance(engine, BatchedEngine)
    verification = engine.verdict.verification
    assert verification is not None
    assert engine.facts.speculation.startswith("prompt lookup")
    if verification.logits:
        assert engine.facts.independence.logits >= MARGIN * verification.logits
        assert not engine.facts.independence.reproducible
    found = answer(engine, ask(prompt=LIST, max_tokens=60, min_tokens=60))
    assert len(found.tokens) == 60
    engine.release()


def test_drafts_are_verified_by_default_where_a_lone_row_rounds_anyway(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.engine.batched.opening.Runner", kinds.LoneRowRounds)
    engine = open_engine(tiny_bundle, threads=2)
    assert engine.facts.engine == "batched", engine.facts.why
    assert engine.facts.speculation.startswith("prompt lookup, within rounding (measured: ")
    engine.release()


SAME = Independence(True, "kernels are alike")
BOUNDED = Independence(False, "a request that runs alone takes another kernel", logits=1.0, nats=0.01)
ROUNDS = Verification(0.5, 0.01)


@pytest.mark.parametrize(
    ("promised", "verification", "slots", "mode", "on", "says"),
    [
        (SAME, Verification(), 8, Mode(), True, "the same bits"),
        (SAME, Verification(), 8, Mode(reproducible=True), True, "the same bits"),
        (SAME, Verification(), 8, Mode(speculation="off"), False, "speculation"),
        (SAME, None, 8, Mode(speculation="on"), False, "cannot be verified"),
        (SAME, ROUNDS, 8, Mode(), False, "the same bit for bit"),
        (SAME, ROUNDS, 8, Mode(speculation="on"), True, "within rounding"),
        (SAME, ROUNDS, 1, Mode(), True, "within rounding"),
        (SAME, ROUNDS, 1, Mode(reproducible=True, speculation="on"), False, "asks for not a bit"),
        (BOUNDED, ROUNDS, 8, Mode(), True, "within rounding"),
        (BOUNDED, Verification(9.0, 0.3), 8, Mode(speculation="on"), False, "answered differently"),
        (BOUNDED, Verification(math.nan, math.nan), 8, Mode(), False, "answered differently"),
    ],
)
def test_when_tokens_are_drafted(
    promised: Independence, verification: Verification | None, slots: int, mode: Mode, on: bool, says: str
) -> None:
    found = settle_drafting(promised, verification, slots, mode)
    assert found.on is on
    assert says in found.why
    rounds = on and verification is not None and bool(verification.logits) and slots > 1
    assert (found.independence == promised) is not rounds
    if rounds:
        assert verification is not None
        assert not found.independence.reproducible
        assert found.independence.logits == max(promised.logits, MARGIN * verification.logits)
        assert found.independence.nats == max(promised.nats, MARGIN * verification.nats)
