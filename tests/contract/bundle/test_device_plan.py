"""The plan of a device, with the numbers of real models' shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contract.bundle.device_plan import (
    MOST_SHARE,
    PICTURE_SHARE,
    SPARE_DISK_BYTES,
    SYSTEM_BYTES,
    WORKER_BYTES,
    Box,
    least_ram,
    needed_ram,
    plan_device,
    plan_given,
    plan_kv,
)
from contract.bundle.footprint import FEATURES_SHARE, QUESTION_TOKENS, Footprint, remembered_picture
from contract.bundle.picture_families import Size, phi3v_cost

GIB = 1 << 30

PHI = Footprint(
    packed=2_793_000_000, originals=2_383_000_000, rest=150_000_000, kv_token=786_432, kv_type="fp32",
    context_length=131_072,
)  # fmt: skip
PHI_INT8 = replace(PHI, kv_token=PHI.kv_token // 4, kv_type="int8")
PHI_BYTES = 2_480_000_000
LLAMA_1B = Footprint(
    packed=927_000_000, originals=640_000_000, rest=170_000_000, kv_token=65_536, kv_type="fp32", context_length=131_072
)


@pytest.mark.parametrize("ram", [3.7, 4.0])
def test_phi_answers_alone_on_4_gb_with_2048_tokens_and_makes_room_for_the_next(ram: float) -> None:
    plan = plan_device(PHI_INT8, PHI_BYTES, Box(int(ram * GIB), 4), tokens=2048)
    assert plan.fits
    assert (plan.kv.slots, plan.swap) == (1, "drain")
    assert plan.kv.length >= 2048


@pytest.mark.parametrize("ram", [7.6, 8.0])
def test_phi_has_four_slots_of_4096_on_8_gb(ram: float) -> None:
    plan = plan_device(PHI_INT8, PHI_BYTES, Box(int(ram * GIB), 4), tokens=4096)
    assert plan.fits
    assert plan.kv.slots >= 4
    assert plan.kv.length >= 4096


def test_an_operator_may_have_more_and_shorter_requests_at_once() -> None:
    """Llama-3.2-1B on 8 GiB: four by the plan, since a request that is too long is refused and one too many waits."""
    planned = plan_device(LLAMA_1B, 810_000_000, Box(8 * GIB, 4)).kv
    wanted = plan_device(LLAMA_1B, 810_000_000, Box(8 * GIB, 4, slots=8)).kv
    assert (planned.slots, wanted.slots) == (4, 8)
    assert planned.length > 10_000
    assert planned.length // 2 - 64 < wanted.length <= planned.length // 2
    narrow = plan_device(PHI_INT8, PHI_BYTES, Box(4 * GIB, 4, slots=4), tokens=2048)
    assert narrow.kv.slots == 4
    assert narrow.short.startswith("memory is short by 1.1 GiB: 2048 tokens of context for 4 requests need 5.1 GiB, ")
    assert narrow.short.endswith(f"what helps: ask for {narrow.kv.length} tokens, or for fewer at once (slots = 1)")
    assert plan_device(PHI_INT8, PHI_BYTES, Box(4 * GIB, 4, slots=1), tokens=2048).fits


def test_what_is_missing_is_named_with_how_much_and_what_helps() -> None:
    plan = plan_device(PHI, PHI_BYTES, Box(4 * GIB, 4), tokens=2048)
    assert plan.short.startswith("memory is short by 1.1 GiB: 2048 tokens of context need 5.1 GiB, there are 4.0 GiB; ")
    assert plan.short.endswith("or build with --kv int8, whose cache takes a quarter")
    assert f"ask for {plan.kv.length} tokens" in plan.short
    assert plan_device(PHI, PHI_BYTES, Box(4 * GIB, 4), tokens=plan.kv.length).fits
    tiny = plan_device(PHI_INT8, PHI_BYTES, Box(GIB, 4))
    assert tiny.short.endswith("what helps: a device with 3.2 GiB, or a smaller model")
    assert (tiny.room, tiny.kv.slots) == (0, 0)
    disk = plan_device(PHI_INT8, PHI_BYTES, Box(4 * GIB, 4, PHI_BYTES))
    assert disk.short.startswith("the disk is short by 2.6 GiB: one version beside the next needs 4.9 GiB")


def test_prepacked_weights_are_made_only_where_disk_and_engine_let_them() -> None:
    ample = plan_device(LLAMA_1B, 810_000_000, Box(4 * GIB, 4, 32 * GIB, prepacked=2 * GIB))
    assert ample.prepacked
    assert ample.disk.version < ample.disk.swap < ample.disk.both
    usual = plan_device(PHI_INT8, PHI_BYTES, Box(8 * GIB, 4, 64 * GIB))
    assert usual.disk.version <= 1.6 * PHI_BYTES
    assert usual.prepacked_why == "they would take 5.0 GiB of disk, more than the 1.4 GiB that are allowed"
    little = 2 * 810_000_000 + SPARE_DISK_BYTES
    narrow = plan_device(LLAMA_1B, 810_000_000, Box(4 * GIB, 4, little, prepacked=2 * GIB))
    assert (narrow.fits, narrow.prepacked, narrow.disk.version) == (True, False, 810_000_000)
    assert "no room" in narrow.prepacked_why
    other = plan_device(LLAMA_1B, 810_000_000, Box(4 * GIB, 4), unmapped="it has adapters")
    assert (other.prepacked, other.prepacked_why) == (False, "it has adapters")


footprints = st.builds(
    Footprint,
    packed=st.integers(0, 4 * GIB),
    originals=st.integers(0, 4 * GIB),
    rest=st.integers(0, GIB),
    kv_token=st.integers(1, 1 << 20),
    kv_type=st.sampled_from(["fp32", "int8"]),
    context_length=st.integers(64, 1 << 17),
)


def test_the_next_version_is_promised_to_run_beside_only_where_full_slots_leave_room_for_it() -> None:
    plans = {ram: plan_device(PHI_INT8, PHI_BYTES, Box(ram * GIB, 4)) for ram in (4, 8, 12, 16)}
    assert {ram: plan.swap for ram, plan in plans.items()} == {4: "drain", 8: "either", 12: "beside", 16: "beside"}
    for plan in plans.values():
        full = plan.kv.slots * plan.kv.length * PHI_INT8.kv_token + plan.kv.prefix_bytes
        assert (plan.swap == "beside") == (plan.room - full > PHI_INT8.weights + WORKER_BYTES)


@pytest.mark.parametrize("tokens", [4096, 8192, 32768])
def test_a_long_context_is_promised_only_with_the_memory_that_it_takes(tokens: int) -> None:
    # "short by 1 MiB: 8192 tokens need 5.1 GiB, there are 5.1 GiB": the plan makes four slots, of half as much memory.
    short = plan_device(PHI_INT8, PHI_BYTES, Box(4 * GIB, 4), tokens=tokens)
    assert f"{tokens} tokens of context for 4 requests need " in short.short
    needed = needed_ram(PHI_INT8, tokens)
    assert plan_device(PHI_INT8, PHI_BYTES, Box(needed, 4), tokens=tokens).fits
    assert not plan_device(PHI_INT8, PHI_BYTES, Box(int(0.9 * needed), 4), tokens=tokens).fits
    alone = Box(needed_ram(PHI_INT8, tokens, 1), 4)
    assert plan_device(PHI_INT8, PHI_BYTES, alone, tokens=tokens).short.endswith("fewer at once (slots = 1)")
    assert plan_device(PHI_INT8, PHI_BYTES, replace(alone, slots=1), tokens=tokens).fits


def test_a_window_of_4096_tokens_takes_the_place_of_two_slots_of_half_as_much() -> None:
    # The batched engine refuses slots that are shorter than the window, and one would do.
    windowed = replace(PHI_INT8, least_cache=4096)
    ram = needed_ram(windowed, 4096)
    plans = [plan_device(each, PHI_BYTES, Box(ram, 4), tokens=4096) for each in (windowed, PHI_INT8)]
    assert [(plan.fits, plan.kv.slots) for plan in plans] == [(True, 1), (False, 2)]
    assert plans[0].kv.length >= 4096


@given(footprints)
def test_the_memory_that_a_manifest_asks_for_is_the_least_that_the_plan_accepts(footprint: Footprint) -> None:
    least = least_ram(footprint)
    assert plan_device(footprint, 1, Box(least, 1)).fits
    less = plan_device(footprint, 1, Box(least - 2**20 - int(65 * footprint.kv_token / MOST_SHARE), 1))
    assert not less.fits


@given(st.integers(0, 1 << 36), st.integers(1, 1 << 20), st.integers(64, 1 << 17))
def test_requests_and_known_prompts_leave_memory_for_others(room: int, kv_token: int, context: int) -> None:
    plan = plan_kv(room, kv_token, context)
    taken = plan.slots * plan.length * kv_token
    assert taken <= plan.budget <= MOST_SHARE * room + 1
    assert plan.budget + plan.prefix_bytes <= 0.8 * room + 1
    given_plan = plan_given(room, kv_token, context)
    assert given_plan.slots * given_plan.length * kv_token + given_plan.prefix_bytes <= room


@given(st.integers(0, 1 << 36), st.integers(1, 1 << 20), st.integers(64, 1 << 17), st.integers(0, 1 << 32))
def test_a_prompt_with_a_picture_is_remembered_where_it_takes_a_quarter_at_most(
    room: int, kv_token: int, context: int, picture: int
) -> None:
    plain, plan = plan_kv(room, kv_token, context), plan_kv(room, kv_token, context, picture=picture)
    assert plan.budget + plan.prefix_bytes <= 0.8 * room + 1
    if picture <= PICTURE_SHARE * room:
        assert plan.prefix_bytes >= picture
        assert plan.budget >= min(plain.budget, int(0.55 * room) - 1)
    else:
        assert plan == plain


def test_phi_vision_on_8_gib_remembers_its_largest_picture() -> None:
    # 2,509 tokens and a question, at 192 KiB a token: beside four slots of 4,096 tokens they had no room.
    footprint = replace(PHI_INT8, picture=remembered_picture(phi3v_cost, PHI_INT8.kv_token, 3072))
    plan = plan_device(footprint, GIB, Box(8 * GIB, 2))
    tokens = phi3v_cost(Size(2048, 2048)).tokens + QUESTION_TOKENS
    assert plan.kv.prefix_bytes * (1 - FEATURES_SHARE) >= tokens * footprint.kv_token
    assert plan.kv.slots == 4
    assert plan.kv.length >= tokens


@given(footprints, st.integers(0, 1 << 32), st.integers(1, 256), st.integers(0, 8))
def test_what_is_said_to_be_needed_is_enough_whatever_is_asked_for(
    footprint: Footprint, picture: int, blocks: int, slots: int
) -> None:
    seeing = replace(footprint, picture=picture, context_length=1 << 17, least_cache=0)
    tokens = 512 * blocks
    needed = needed_ram(seeing, tokens, slots)
    room = needed - SYSTEM_BYTES - WORKER_BYTES - seeing.weights - seeing.scratch
    assert plan_kv(room, seeing.kv_token, seeing.context_length, slots, picture=picture).length >= tokens - 64


@given(st.integers(0, 1 << 34), st.integers(1, 1 << 28), st.integers(1, 1 << 20))
def test_more_memory_is_never_less_room(room: int, more: int, kv_token: int) -> None:
    before, after = plan_kv(room, kv_token, 8192), plan_kv(room + more, kv_token, 8192)
    assert after.budget >= before.budget
