"""Does what a request gets depend on what else runs? What is found out about a processor's kernels, what is promised
then, and that it holds: with the kernels of the processor that runs this, and with those of others
(:mod:`tests.agent.engine.kinds`).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from agent.engine.batched.graph import read_decoder
from agent.engine.batched.independence import promise
from agent.engine.batched.pool import Pool
from agent.engine.batched.runner import Runner, open_session
from agent.engine.batched.self_check import Proof, divergence, prove_all
from agent.engine.batched.slicing import SLICE
from agent.engine.config import read_config
from agent.engine.engine_selection import open_engine
from agent.engine.interface import Engine, Generation
from agent.engine.runtime_errors import Declined
from tests import avx2
from tests.agent.engine import kinds
from tests.agent.engine.conformance.test_generation import ask
from tests.agent.engine.driving import Outcome, answer, record, run
from tests.kept import CACHE, ROOT

TEXT = (
    "The ferry left the harbour at half past six, and the mechanic who had repaired its pump during the night stood on "
    "the pier, counting lights until the fog took them. He wrote down what he had done and went home to sleep. "
)
AVX2_SECONDS = 800.0


def opened(bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Runner], **fields: object) -> Engine:
    monkeypatch.setattr("agent.engine.batched.opening.Runner", kind)
    engine = open_engine(bundle, threads=2, **fields)  # type: ignore[arg-type]
    if issubclass(kind, kinds.Kind):
        kind.lone_decodes = 0
    return engine


def logprobs(outcome: Outcome) -> list[tuple[int, float]]:
    assert outcome.finish is not None, outcome.reject
    return [(entry["id"], entry["logprob"]) for event in outcome.tokens for entry in event.logprobs or []]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (kinds.NeighboursCount, "requests in one batch change each other"),
        (kinds.NeighboursShine, "requests in one batch change each other"),
        (kinds.OddOneRounds, "requests in one batch change each other"),
        (kinds.NotANumber, "requests in one batch change each other"),
        (kinds.SlotsDiffer, "whose beginning is known is read differently"),
        (kinds.SlicesDiffer, "reading a prompt in slices changes it"),
    ],
)
@pytest.mark.parametrize("reproducible", [False, True])
def test_rows_that_depend_on_their_neighbours_are_not_batched(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Runner], says: str, reproducible: bool
) -> None:
    engine = opened(tiny_bundle, monkeypatch, kind, reproducible=reproducible)
    assert engine.facts.engine == "genai"
    assert says in engine.facts.why
    assert engine.facts.independence.reproducible, "it computes each request apart"
    engine.release()


@pytest.mark.parametrize("kind", [kinds.LoneRowRounds, kinds.LoneRowKeepsOthers])
def test_a_lone_row_that_differs_is_batched_within_a_bound_or_padded(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Runner]
) -> None:
    engine = opened(tiny_bundle, monkeypatch, kind)
    found = engine.facts.independence
    assert (engine.facts.engine, found.reproducible, found.pads) == ("batched", False, False)
    assert "runs alone takes another kernel" in found.why
    assert found.logits > (kinds.RECORDED if kind is kinds.LoneRowRounds else 0)
    engine.release()
    engine = opened(tiny_bundle, monkeypatch, kind, reproducible=True)
    found = engine.facts.independence
    assert (engine.facts.engine, found.reproducible, found.pads) == ("batched", True, True)
    assert "padded" in found.why
    assert (found.logits, found.nats) == (0, 0)
    engine.release()


def test_a_lone_row_that_is_far_off_is_never_used(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tiny_bundle, monkeypatch, kinds.LoneRowIsFarOff)
    assert engine.facts.engine == "genai"
    assert "runs alone is answered differently here" in engine.facts.why
    engine.release()
    engine = opened(tiny_bundle, monkeypatch, kinds.LoneRowIsFarOff, reproducible=True)
    assert (engine.facts.engine, engine.facts.independence.pads) == ("batched", True)
    engine.release()


def test_rounding_by_the_batch_is_a_bound_unless_every_bit_is_asked_for(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(tiny_bundle, monkeypatch, kinds.BatchesRound)
    found = engine.facts.independence
    assert (engine.facts.engine, found.reproducible) == ("batched", False)
    assert kinds.FP32 / 2 < found.logits < math.inf
    engine.release()
    engine = opened(tiny_bundle, monkeypatch, kinds.BatchesRound, reproducible=True)
    assert engine.facts.engine == "genai"
    assert "reproducible asks for not a bit" in engine.facts.why
    engine.release()


def test_what_is_promised_follows_from_what_was_measured() -> None:
    same = promise(Proof(), 8, reproducible=False)
    assert (same.reproducible, same.pads) == (True, False)
    assert promise(Proof(), 8, reproducible=True) == same
    alone = promise(Proof(lone=9.0, lone_nats=9.0), 1, reproducible=False)
    assert (alone.reproducible, alone.pads) == (True, False), "nobody is ever beside it"
    for proof in (Proof(lone_nats=math.nan, lone=math.nan), Proof(lone=1.0, lone_nats=0.3)):
        with pytest.raises(Declined):
            promise(proof, 8, reproducible=False)


def requests() -> list[Generation]:
    """Short and long, greedy and drawn; prompts of one token, of a slice and one more, and of several slices."""
    prompts = ["a", "The sea", TEXT, TEXT + TEXT[:40], "Count from one to five.", TEXT[:70]]
    return [
        ask(number, prompt=prompt, max_tokens=5 + 3 * number, min_tokens=5 + 3 * number, logprobs=True,
            temperature=0.9 * (number % 2), seed=number, client="anna" if number % 3 else "ben")
        for number, prompt in enumerate(prompts * 2)
    ]  # fmt: skip


def assert_alone_and_together_the_same_bits(engine: Engine, made: list[Generation]) -> None:
    alone = {each.request: logprobs(answer(engine, each)) for each in made}
    for pause in (0, 1, 3):
        outcomes: dict[int, Outcome] = {}
        for number, each in enumerate(made if pause else reversed(made)):
            # Half of them are known from before; the others are read slice by slice while somebody decodes.
            engine.admit(replace(each, client=f"{each.client}, round {pause}") if number % 2 else each)
            for _ in range(pause * (number % 3)):
                record(engine.step(), outcomes)
        run(engine, outcomes=outcomes)
        assert {number: logprobs(outcome) for number, outcome in outcomes.items()} == alone


@pytest.mark.parametrize("kind", [Runner, kinds.LoneRowRounds, kinds.LoneRowIsFarOff])
@pytest.mark.parametrize("slots", [8, 2])
def test_reproducible_means_bit_for_bit_whatever_else_runs(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Runner], slots: int
) -> None:
    """Log-probabilities and all: known beginnings and new ones, slots next to it empty, being read or full."""
    decoder = read_decoder(tiny_bundle, read_config(tiny_bundle))
    room = int(decoder.kv_bytes_per_token * decoder.context_length * (slots + 0.5) / 0.75)
    engine = opened(tiny_bundle, monkeypatch, kind, reproducible=True, max_bytes=room)
    assert (engine.facts.slots, engine.facts.independence.reproducible) == (slots, True)
    assert_alone_and_together_the_same_bits(engine, requests())
    engine.release()


def test_no_answer_is_decoded_alone_where_that_would_show(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's last token may be read on its own: always, whoever else is there."""
    engine = opened(tiny_bundle, monkeypatch, kinds.LoneRowRounds, reproducible=True)
    answer(engine, ask(1, prompt="The sea", max_tokens=20, min_tokens=20))
    assert kinds.LoneRowRounds.lone_decodes == 0
    engine.release()
    engine = opened(tiny_bundle, monkeypatch, kinds.LoneRowRounds, speculation="off")
    answer(engine, ask(1, prompt="The sea", max_tokens=20, min_tokens=20))
    assert kinds.LoneRowRounds.lone_decodes == 19, "the faster kernel is taken where nothing else is asked for"
    engine.release()


@pytest.fixture(scope="module")
def faster(short_bundle: Path) -> Iterator[Engine]:
    """The real model as it comes, with the faster kernel for a lone row."""
    engine = open_engine(short_bundle, threads=2)
    assert engine.facts.engine == "batched", engine.facts.why
    yield engine
    engine.release()


def test_as_it_comes_the_promise_of_this_processor_holds(faster: Engine) -> None:
    """As long as the same tokens were chosen, each was as probable as alone, within the bound."""
    promised = faster.facts.independence
    made = [
        ask(number, prompt=TEXT[start : start + 60], max_tokens=16, logprobs=True, client=str(number))
        for number, start in enumerate((0, 50, 90, 120))
    ]
    alone = {each.request: logprobs(answer(faster, each)) for each in made}
    together = {number: logprobs(outcome) for number, outcome in run(faster, *made).items()}
    if promised.reproducible:
        assert together == alone
    compared = 0
    for number, pairs in alone.items():
        for (token, before), (other, after) in zip(pairs, together[number], strict=True):
            # Two logits of it moved: the token's own, and those of all the others together.
            assert abs(before - after) <= 2 * promised.logits
            compared += 1
            if token != other:
                break
    assert compared > len(made), "some tokens follow on equal ones"


def test_the_bound_holds_for_text_that_the_self_test_never_saw(short_bundle: Path) -> None:
    import onnxruntime_genai

    decoder = read_decoder(short_bundle, read_config(short_bundle))
    pool = Pool(decoder, 8, 512)
    runner = Runner(open_session(decoder.path, 2), decoder, pool)
    proof = prove_all(runner, pool, decoder, SLICE)
    bound = promise(proof, pool.slots, reproducible=False)
    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Config(str(short_bundle)))
    tokens = [int(token) for token in tokenizer.encode(TEXT)]
    runner.prefill(0, 0, tokens[:8])
    for past, token in enumerate(tokens[8:], start=8):
        lone = runner.decode(0, [token], [past])[0].copy()
        padded = runner.decode_padded(0, token, past)[0]
        assert np.abs(lone - padded).max() <= bound.logits
        assert abs(divergence(padded, lone)) <= bound.nats
    if avx2.how()[0] in ("forced", "own"):
        # The recorded figure, which is why these kernels are told apart at all.
        assert proof.rows == 0, "in batches of two and more a row is the same bit for bit"
        assert 0.5 * kinds.RECORDED < proof.lone < 2 * kinds.RECORDED
        assert 0.0005 < proof.lone_nats < 0.02


@pytest.mark.timeout(900)
def test_the_engine_holds_with_the_kernels_of_avx2(short_bundle: Path) -> None:
    """What most boxes have, on the machine that tests this, which mostly has newer ones (see ``tests/avx2``).

    This module under the mask, where it finds other kernels and has to keep its promises, and what of the others is
    about neighbours and known beginnings; ``make test-avx2`` runs all that a model is in.
    """
    kind, why = avx2.how()
    if kind == "forced":
        assert not avx2.visible(), "the mask hides nothing"
        return
    if kind != "forcible":
        pytest.skip(f"{why}; {kinds.LoneRowRounds.__name__} stands for AVX2")
    try:
        avx2.library(CACHE / "avx2")
    except RuntimeError as error:
        if os.environ.get("EDGE_REQUIRE_BROKER") == "1":  # where nothing that is needed may be missing
            raise
        pytest.skip(str(error))
    files = ["tests/agent/engine/batched/test_independence.py", "tests/agent/engine/batched/test_batched.py"]
    chosen = "test_independence or known_beginning or come_and_go"
    command = [sys.executable, "-m", "tests.avx2", *files, "-k", chosen]
    quiet = {**os.environ, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    done = subprocess.run(
        command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=AVX2_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels of AVX2: forcible" in done.stdout
    assert "skipped" not in done.stdout
