"""Where prompts are cut: the same whatever the width, whatever follows, and through no picture in one piece."""

from __future__ import annotations

from itertools import cycle, pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.batched.prefixes import shared_length
from agent.engine.batched.slicing import SLICE, Slicing
from agent.engine.batched.verdict import WIDE_SLICE
from agent.engine.pictures.features import MAX_POSITIONS

APART, TOGETHER = Slicing(), Slicing(together=True)
widths = st.lists(st.sampled_from([SLICE, WIDE_SLICE]), min_size=1, max_size=5)


def picture(number: int, size: int) -> list[int]:
    first = -1 - number * MAX_POSITIONS
    return list(range(first, first - size, -1))


words = st.integers(0, 90).map(lambda size: [7] * size)
pictures = st.tuples(st.integers(0, 2), st.sampled_from([1, 5, 16, 40])).map(lambda found: picture(*found))
prompts = st.lists(st.one_of(words, pictures), max_size=6).map(lambda parts: [*(t for part in parts for t in part), 9])


def ends(slicing: Slicing, prompt: list[int], asked: list[int]) -> list[int]:
    found, width = [0], cycle(asked)
    while found[-1] < len(prompt):
        found.append(slicing.end(prompt, found[-1], next(width)))
        assert found[-1] > found[-2]
    return found


@given(prompts, widths)
def test_slices_of_any_width_are_the_narrow_ones_put_together(prompt: list[int], asked: list[int]) -> None:
    """What is shorter than a slice, or beside a picture, is computed differently, so it has to be cut alike."""
    for slicing in (APART, TOGETHER):
        narrow, found = ends(slicing, prompt, [SLICE]), ends(slicing, prompt, asked)
        assert set(found) <= set(narrow)
        for start, end in pairwise(found):
            joined = [at for at in narrow if start < at < end]
            assert not joined or (end - start <= WIDE_SLICE and all(at % SLICE == 0 for at in (start, *joined, end)))


@given(prompts)
def test_a_picture_in_one_piece_is_a_slice_of_its_own(prompt: list[int]) -> None:
    found = ends(TOGETHER, prompt, [WIDE_SLICE])
    for start, end in pairwise(found):
        seen = {token for token in prompt[start:end] if token < 0}
        assert not seen or (len({(-1 - token) // MAX_POSITIONS for token in seen}) == 1 and len(seen) == len(set(seen)))
        assert not seen or all(token < 0 for token in prompt[start:end])
    longest = max((end - start for start, end in pairwise(found) if prompt[start] < 0), default=0)
    assert TOGETHER.longest(prompt) == longest


@given(prompts, prompts, st.data())
def test_prompts_that_begin_alike_are_read_alike_up_to_a_cut(
    one: list[int], other: list[int], data: st.DataObject
) -> None:
    begun = [*one[: data.draw(st.integers(0, len(one)))], 5]
    both = [[*begun[:-1], *other], [*begun[:-1], 5, 5, *other]]
    for slicing in (APART, TOGETHER):
        shared = shared_length(*both)
        cut = slicing.cut(both[0], shared)
        read = [ends(slicing, prompt, [SLICE]) for prompt in both]
        assert cut <= shared
        assert cut in read[0]
        assert [at for at in read[0] if at <= cut] == [at for at in read[1] if at <= cut]
        assert shared - cut < SLICE + 2 * 40 if slicing.together else shared - cut < SLICE


def test_a_piece_of_a_canary_cuts_no_picture() -> None:
    prompt = [1] * 20 + picture(0, 40) + [1] * 30
    assert [TOGETHER.piece(prompt, *span) for span in ((0, 64), (20, 64), (60, 88))] == [20, 60, 88]
    assert APART.piece(prompt, 0, 64) == 64
