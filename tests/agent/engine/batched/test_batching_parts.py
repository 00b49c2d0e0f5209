"""The pure parts of batching: the slot table, remembered prompts, and how memory becomes slots."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.engine.batched.prefixes import Prefixes, shared_length
from agent.engine.batched.slots import Move, Slots
from contract.bundle.device_plan import GOOD_LENGTH, GOOD_SLOTS, LENGTH_GRANULE, MAX_SLOTS, plan_pool

SIZE = 5


class SlotsUnderUse(RuleBasedStateMachine):
    """Requests come, begin to decode and go in any order; ``memory`` follows the moves as a pool would."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: Slots[str] = Slots(SIZE)
        self.memory: list[str | None] = [None] * SIZE
        self.reading: list[str] = []
        self.decoding: list[str] = []
        self.count = 0

    def follow(self, move: Move | None) -> None:
        if move is None:
            return
        if move.kind == "copy":
            self.memory[move.target] = self.memory[move.source]
        else:
            here, there = self.memory[move.source], self.memory[move.target]
            self.memory[move.source], self.memory[move.target] = there, here

    @rule()
    def come(self) -> None:
        if self.slots.free:
            self.count += 1
            name = f"request {self.count}"
            self.memory[self.slots.assign(name)] = name
            self.reading.append(name)

    @rule(pick=st.integers(0, 99))
    def join(self, pick: int) -> None:
        if self.reading:
            name = self.reading.pop(pick % len(self.reading))
            self.follow(self.slots.join(self.slots.where(name)))
            self.decoding.append(name)

    @rule(pick=st.integers(0, 99))
    def leave(self, pick: int) -> None:
        everybody = [*self.reading, *self.decoding]
        if everybody:
            name = everybody[pick % len(everybody)]
            self.follow(self.slots.leave(self.slots.where(name)))
            (self.reading if name in self.reading else self.decoding).remove(name)

    @invariant()
    def everybody_finds_their_memory(self) -> None:
        for name in (*self.reading, *self.decoding):
            assert self.memory[self.slots.where(name)] == name

    @invariant()
    def those_who_decode_fill_the_first_slots(self) -> None:
        assert self.slots.decoding == len(self.decoding)
        assert set(self.slots.decoders()) == set(self.decoding)
        assert self.slots.free == SIZE - len(self.reading) - len(self.decoding)


TestSlotsUnderUse = SlotsUnderUse.TestCase

tokens = st.lists(st.integers(0, 2), max_size=24)


def by_four(_: Sequence[int], length: int) -> int:
    return length // 4 * 4


@given(tokens, tokens)
def test_shared_length_is_the_common_beginning(one: list[int], other: list[int]) -> None:
    length = shared_length(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


@given(st.lists(st.tuples(st.sampled_from(["anna", "ben"]), tokens), max_size=20), tokens)
def test_remembered_prompts_stay_in_budget_and_with_their_client(
    kept: list[tuple[str, list[int]]], asked: list[int]
) -> None:
    prefixes: Prefixes[tuple[str, list[int]]] = Prefixes(40)
    for client, ids in kept:
        if prefixes.wants(client, ids, len(ids)):
            prefixes.keep(client, ids, (client, ids), len(ids))
        assert prefixes.used <= 40
    entry, length = prefixes.find("anna", asked, by_four)
    assert length % 4 == 0
    if entry is None:
        assert length == 0
    else:
        assert entry.kept[0] == "anna"
        assert entry.kept[1][:length] == asked[:length]


def test_what_was_used_last_is_kept_longest() -> None:
    prefixes: Prefixes[str] = Prefixes(8)
    prefixes.keep("anna", [1, 1, 1, 1], "one", 4)
    prefixes.keep("anna", [2, 2, 2, 2], "two", 4)
    assert prefixes.find("anna", [1, 1, 1, 1, 5], by_four)[1] == 4
    prefixes.keep("anna", [3, 3, 3, 3], "three", 4)
    assert prefixes.find("anna", [2, 2, 2, 2, 5], by_four) == (None, 0)
    assert prefixes.find("anna", [1, 1, 1, 1, 5], by_four)[1] == 4


def test_a_longer_prompt_takes_the_place_of_its_own_beginning() -> None:
    prefixes: Prefixes[str] = Prefixes(100)
    prefixes.keep("anna", [1, 2], "short", 2)
    prefixes.keep("anna", [1, 2, 3, 4], "long", 4)
    assert prefixes.used == 4
    assert not prefixes.wants("anna", [1, 2, 3], 3)
    assert prefixes.wants("ben", [1, 2, 3], 3)


@given(st.integers(0, 1 << 36), st.integers(1, 1 << 20), st.integers(64, 1 << 17))
def test_the_pool_never_outgrows_its_budget(budget: int, bytes_per_token: int, context: int) -> None:
    slots, length = plan_pool(budget, bytes_per_token, context)
    assert slots * length * bytes_per_token <= budget
    assert 0 <= slots <= MAX_SLOTS
    assert 0 <= length <= context
    if context > GOOD_LENGTH and 0 < slots < GOOD_SLOTS:
        assert budget // bytes_per_token < (slots + 1) * GOOD_LENGTH, "a slot more would have had room"
    if slots and length < context:
        left = budget // bytes_per_token - slots * length
        assert slots == MAX_SLOTS or left < max(GOOD_LENGTH, slots * LENGTH_GRANULE), "memory is left over"


@given(st.integers(0, 1 << 18), st.integers(0, 1 << 18), st.integers(1, 1 << 17))
def test_more_memory_means_neither_fewer_requests_at_once_nor_shorter_ones(
    tokens: int, more: int, context: int
) -> None:
    """What was taken after one start is not refused after the next, since a little more memory was free."""
    slots, length = plan_pool(tokens, 1, context)
    then_slots, then_length = plan_pool(tokens + more, 1, context)
    assert then_slots >= slots
    if slots in (then_slots, GOOD_SLOTS):
        assert then_length >= length
    if then_slots > GOOD_SLOTS:
        assert then_length == context, "more than four have the whole context"


@given(st.integers(0, 1 << 18), st.integers(1, 1 << 13), st.integers(1, 1 << 17))
def test_a_window_that_memory_holds_once_is_held_at_least_once(tokens: int, window: int, context: int) -> None:
    least = min(window, context)
    slots, length = plan_pool(tokens, 1, context, least=least)
    assert slots * length <= tokens
    if tokens >= least:
        assert length >= least, "fewer slots would have served"
    if tokens >= GOOD_SLOTS * max(least, GOOD_LENGTH):
        assert slots >= GOOD_SLOTS


@given(st.integers(0, 1 << 18), st.integers(1, MAX_SLOTS), st.integers(1, 1 << 17))
def test_as_many_requests_at_once_as_an_operator_wants_share_all_memory(tokens: int, wanted: int, context: int) -> None:
    slots, length = plan_pool(tokens, 1, context, wanted)
    if tokens // wanted < min(LENGTH_GRANULE, context):
        assert (slots, length) == (0, 0)
    else:
        assert slots == wanted
        assert length == context or tokens - slots * length < slots * LENGTH_GRANULE
