"""Families whose decoders want more than embeddings, batched: the same as the runtime's own way with them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from msgspec import structs

from agent.engine.batched.graph import read_decoder
from agent.engine.config import read_config
from agent.engine.engine_selection import open_engine
from agent.engine.interface import Detail, Engine, Generation
from agent.engine.runtime_errors import Declined
from contract.bundle.canary import PICTURE
from contract.bundle.footprint import measure_footprint
from contract.bundle.picture_families import Size
from contract.onnx.wire import read_graph_file
from tests.agent.engine.driving import Outcome, answer, record, run
from tests.agent.engine.test_vision import BAD
from tests.packager.vision.built import noise, save_png
from tests.seeing import png

WORDS = "Some words that take more than one slice come before it, and then the picture:"
PORTRAIT, LANDSCAPE = save_png(noise(200, 120)), save_png(noise(120, 200, 1))
GREY, TINY, WIDE = save_png(noise(90, 90, 2).convert("L")), save_png(noise(3, 4, 3)), save_png(noise(16, 300, 4))

CONTENTS = {
    "portrait": (PORTRAIT, "What is it?"),
    "landscape behind words": (WORDS, LANDSCAPE, "What is it?"),
    "several": (PORTRAIT, "and", LANDSCAPE, "or", GREY, "?"),
    "side by side": (TINY, WIDE),
    "words": ("What is it?",),
}


class Family(NamedTuple):
    """Two engines of one model; a picture of 448 pixels squared has so many ``tokens``, read ``together`` or not."""

    folder: Path
    batched: Engine
    genai: Engine
    tokens: int
    together: bool


def opened(folder: Path, tokens: int, *, together: bool) -> Iterator[Family]:
    batched, genai = (open_engine(folder, engine=name, threads=2, max_bytes=1 << 28) for name in ("batched", "genai"))
    yield Family(folder, batched, genai, tokens, together)
    batched.release()
    genai.release()


@pytest.fixture(scope="module")
def gemma3(gemma3_folder: Path) -> Iterator[Family]:
    yield from opened(gemma3_folder, 256, together=True)


@pytest.fixture(scope="module")
def qwen25vl(qwen25vl_folder: Path) -> Iterator[Family]:
    yield from opened(qwen25vl_folder, 14 * 14, together=False)


@pytest.fixture(params=["gemma3", "qwen25vl"])
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    """Idle again after every test."""
    found: Family = request.getfixturevalue(request.param)
    yield found
    assert not found.batched.busy


def look(
    number: int, *content: str | bytes, most: int = 6, client: str = "anna", detail: Detail = "auto"
) -> Generation:
    pictures = [part for part in content if isinstance(part, bytes)]
    parts = [part if isinstance(part, str) else None for part in content]
    return Generation(
        number, client, messages=[{"role": "user", "content": parts}], pictures=pictures,
        details=[detail] * len(pictures), max_tokens=most, min_tokens=most, logprobs=True, top_logprobs=5,
    )  # fmt: skip


def scores(outcome: Outcome) -> list[tuple[int, list[float]]]:
    """The tokens of an answer, and the log-probabilities of the five likeliest at each."""
    assert outcome.finish is not None, outcome.reject
    told = [entry for event in outcome.tokens for entry in event.logprobs or []]
    assert len(told) == outcome.finish.completion_tokens
    return [(entry["id"], [each["logprob"] for each in entry["top_logprobs"]]) for entry in told]


def assert_alike(one: Outcome, other: Outcome, name: str = "") -> None:
    """The same tokens, each within a thousandth of a nat."""
    first, second = scores(one), scores(other)
    assert [token for token, _ in first] == [token for token, _ in second], name
    for (_, found), (_, wanted) in zip(first, second, strict=True):
        assert found == pytest.approx(wanted, abs=1e-3), name


def encoder_runs(engine: Engine) -> int:
    return int(cast("Any", engine)._looking._encoder.runs)


def test_it_is_batched_and_says_the_same_as_the_runtime(family: Family) -> None:
    assert family.batched.facts.engine == "batched"
    assert "vision" in family.batched.facts.capabilities
    said = set()
    for name, content in CONTENTS.items():
        wanted, found = (answer(engine, look(1, *content)) for engine in (family.genai, family.batched))
        assert_alike(found, wanted, name)
        assert found.finish is not None and wanted.finish is not None
        assert found.finish.prompt_tokens == wanted.finish.prompt_tokens
        said.add(tuple(score for _, each in scores(found) for score in each))
    assert len(said) == len(CONTENTS)


def test_requests_at_once_get_what_they_get_alone(family: Family) -> None:
    asked = [look(number, *content) for number, content in enumerate(CONTENTS.values())]
    alone = [answer(family.batched, each) for each in asked]
    together = run(family.batched, *asked)
    for number, outcome in enumerate(alone):
        assert_alike(together[number], outcome)


def test_a_second_question_about_a_picture_neither_encodes_nor_reads_it_again(family: Family) -> None:
    shown = save_png(noise(448, 448, 11))
    answer(family.batched, look(1, WORDS, shown, "How many are there?"))
    runs = encoder_runs(family.batched)
    second = answer(family.batched, look(2, WORDS, shown, "What is it?"))
    assert encoder_runs(family.batched) == runs
    assert second.finish is not None
    assert second.finish.cached_tokens >= family.tokens + 16
    assert_alike(second, answer(family.genai, look(2, WORDS, shown, "What is it?")))
    behind = answer(family.batched, look(3, "Another beginning", shown, "What is it?"))
    assert encoder_runs(family.batched) == runs, "its place in the prompt is another, its features are the same"
    assert behind.finish is not None
    assert behind.finish.cached_tokens < family.tokens
    assert_alike(behind, answer(family.genai, look(3, "Another beginning", shown, "What is it?")))


def test_a_running_answer_gets_a_token_in_every_step_while_pictures_are_encoded_and_read(family: Family) -> None:
    outcomes: dict[int, Outcome] = {}
    engine = family.batched
    engine.admit(look(2, "Tell me a story.", most=400))
    while 2 not in outcomes:
        record(engine.step(), outcomes)
    fresh = [save_png(noise(448, 448, seed)) for seed in (21, 22)]
    engine.admit(look(1, WORDS, fresh[0], WORDS, fresh[1], "What is it?"))
    announced = []
    while 1 not in outcomes:
        before = len(outcomes[2].tokens)
        announced.append(engine.next_read)
        record(engine.step(), outcomes)
        assert len(outcomes[2].tokens) == before + 1
    pieces = [tokens for tokens in announced if tokens]
    assert set(pieces) == ({family.tokens} if family.together else set())
    assert len(announced) > 2 * len(WORDS) // 16, "what stands around pictures is read in slices"
    run(engine, outcomes=outcomes)


def test_a_canary_about_a_picture_is_scored_alike(family: Family) -> None:
    prompt, text = f"{WORDS} {PICTURE} What is in it?", "A red disc and a blue square."
    first, again, other = (family.batched.score(prompt, text, picture=each) for each in (GREY, GREY, png(9, 200, 9)))
    assert first == again
    assert first.mean_nll != other.mean_nll
    assert family.genai.score(prompt, text, picture=GREY).mean_nll == pytest.approx(first.mean_nll, abs=1e-3)


def test_bad_pictures_are_refused_in_the_same_words(family: Family) -> None:
    wanted = answer(family.batched, look(1, LANDSCAPE, "What is it?"))
    numbers = dict(enumerate(BAD, 10))
    bad = [look(number, BAD[name][0], "What is it?") for number, name in numbers.items()]
    outcomes = run(family.batched, *bad, look(1, LANDSCAPE, "What is it?"))
    for number, name in numbers.items():
        assert outcomes[number].refused_field == "messages", name
        refused = outcomes[number].reject
        assert refused is not None
        assert refused.message.startswith("picture 1: ") and BAD[name][1] in refused.message, name
    assert_alike(outcomes[1], wanted)


def test_detail_low_is_the_same_look_where_every_picture_has_as_many_tokens(gemma3: Family) -> None:
    shown = save_png(noise(600, 600, 31))
    high = answer(gemma3.batched, look(1, shown, "What is it?", detail="high"))
    runs = encoder_runs(gemma3.batched)
    low = answer(gemma3.batched, look(2, shown, "What is it?", detail="low"))
    assert encoder_runs(gemma3.batched) == runs
    assert_alike(low, high)


def test_sizes_by_the_header_are_those_that_are_looked_at(qwen25vl: Family) -> None:
    """Rounded to whole tokens, half ones up; made smaller, larger, and neither."""
    encoder = cast("Any", qwen25vl.batched)._looking._encoder
    wanted = threading.Event()
    wanted.set()
    sizes = [(14, 42), (70, 98), (3, 4), (20, 20), (29, 7), (500, 30), (448, 448), (700, 300), (33, 1000), (1, 32)]
    for low in (False, True):
        for width, height in sizes:
            cost = encoder.look(Size(width, height, low))
            seen = encoder.encode(png(1, 2, 3, width=width, height=height), low=low, most_pixels=1 << 20, wanted=wanted)
            assert cost.tokens == len(seen.rows) == seen.grid.rows * seen.grid.columns, (width, height, low)
            assert cost.patches == 4 * cost.tokens
            assert (seen.grid.rows > seen.grid.columns) == (height > width) or seen.grid.rows == seen.grid.columns
    assert encoder.look(Size(4000, 4000)) == encoder.look(Size(448, 448))


def test_detail_low_makes_a_picture_smaller_where_that_makes_fewer_tokens(qwen25vl: Family) -> None:
    shown = save_png(noise(100, 1000, 51))
    high, low = (
        answer(qwen25vl.batched, look(1, shown, "What is it?", detail=cast("Detail", detail))).finish
        for detail in ("high", "low")
    )
    assert high is not None and low is not None
    assert high.prompt_tokens - low.prompt_tokens == 36 * 4 - 18 * 2


def test_what_looking_and_reading_take_is_planned(gemma3: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = read_config(gemma3.folder)
    footprint = measure_footprint(facts, lambda name: read_graph_file(gemma3.folder / name))
    patches, wide, heads = 1024, 1024, 2
    assert footprint.scratch == patches * 14 * wide + 256 * 2048 * (4 * heads + 11)
    monkeypatch.setattr("agent.engine.pictures.looking.usable_bytes", lambda: 1 << 20)
    refused = answer(gemma3.batched, look(1, save_png(noise(20, 30, 41)), "What is it?")).reject
    assert refused is not None
    assert refused.message.startswith("picture 1: 30 x 20 pixels become 256 tokens, looking at them takes ")
    assert refused.message.endswith("here: send fewer, or use a device with more memory")


def test_what_the_decoder_wants_is_read_in_its_graph(gemma3: Family, tmp_path: Path) -> None:
    facts = read_config(gemma3.folder)
    decoder = read_decoder(gemma3.folder, facts)
    assert (decoder.input_ids, decoder.token_numbers, decoder.window) == ("inputs_embeds", "input_ids", 300)
    with pytest.raises(Declined, match="does not say which token stands for a picture"):
        read_decoder(gemma3.folder, structs.replace(facts, image_token_id=None))


def test_masks_that_are_not_worked_out_for_each_row_are_found_out(gemma3: Family, tmp_path: Path) -> None:
    """As if every row of a batch were as long as the longest: the window of the others would be in the wrong place."""
    import onnx
    from onnx import helper

    folder = shutil.copytree(gemma3.folder, tmp_path / "model")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    own = next(node for node in model.graph.node if "pictures.length" in node.output)
    own.output[:] = ["own_length"]
    at = list(model.graph.node).index(own) + 1
    model.graph.node.insert(at, helper.make_node("Add", ["nothing", "pictures.total"], ["pictures.length"]))
    model.graph.node.insert(at, helper.make_node("Mul", ["own_length", "pictures.zero"], ["nothing"]))
    onnx.save(model, folder / "model.onnx")
    engine = open_engine(folder, threads=2, max_bytes=1 << 28)
    assert engine.facts.engine == "genai"
    assert "requests in one batch change each other here" in engine.facts.why
    engine.release()
