"""Which kernels compute where a processor offers two kinds: what the bundle's own evidence says of them decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.engine import kernels
from agent.engine.engine_selection import open_engine
from agent.engine.interface import CanaryScore
from agent.engine.kernels import AS_IT_COMES, FILE, SHARE, Kernels, choose, drift, evidence, open_chosen, to_choose
from agent.worker.prepacking import GRAPH_FILE, keep, prepack, prove
from contract.bundle.manifest import Canary
from contract.mqtt.device import EngineInfo

CANARIES = [Canary("a", "b", 1.0, 0.1), Canary("c", "d", 2.0, 0.2)]
WITH, WITHOUT = AS_IT_COMES, Kernels(kleidiai=False)


class Loaded:
    """An engine whose losses are off by ``apart``, of which there is never a second one."""

    there = 0

    def __init__(self, apart: float, finite: bool = True) -> None:
        self.apart, self.finite, self.kernels = apart, finite, ""
        Loaded.there += 1
        assert Loaded.there == 1, "two models in memory"

    def score(self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None) -> CanaryScore:
        built = next(canary for canary in CANARIES if canary.prompt == prompt)
        return CanaryScore(built.mean_nll + self.apart * built.tolerance, 9, self.finite)

    def computed_by(self, kernels: str) -> None:
        self.kernels = kernels

    def release(self) -> None:
        Loaded.there -= 1


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], tuple[list[bool], Callable[[Kernels], Loaded]]]:
    monkeypatch.setattr(Loaded, "there", 0)

    def make(fast: float, exact: float) -> tuple[list[bool], Callable[[Kernels], Loaded]]:
        order: list[bool] = []

        def load(wanted: Kernels) -> Loaded:
            order.append(wanted.kleidiai)
            return Loaded(fast if wanted.kleidiai else exact)

        return order, load

    return make


@pytest.mark.parametrize(
    ("fast", "exact", "order", "says"),
    [
        (0.0, 9.0, [True], "KleidiAI: it drifts by 0% of"),
        (-0.8 * SHARE, 9.0, [True], "KleidiAI: it drifts by 20% of"),
        (
            0.5,
            0.06,
            [True, False],
            "without KleidiAI: with it the drift is 50% of what the bundle's evidence allows, 6%",
        ),
        (-1.5, 0.3, [True, False], "without KleidiAI: with it the drift is 150%"),
        (0.5, 0.6, [True, False, True], "KleidiAI: with it the drift is 50%"),
        (float("nan"), 0.1, [True, False], "without KleidiAI: with it the drift is more than can be measured"),
    ],
)
def test_the_fast_kernels_serve_unless_the_evidence_is_against_them(
    loads: Callable[..., tuple[list[bool], Callable[[Kernels], Loaded]]],
    fast: float,
    exact: float,
    order: list[bool],
    says: str,
) -> None:
    loaded, load = loads(fast, exact)
    engine, chosen = choose(load, CANARIES)  # type: ignore[arg-type]
    assert loaded == order
    assert says in chosen.why
    assert chosen.kleidiai == order[-1]
    assert engine.apart is (fast if chosen.kleidiai else exact)  # type: ignore[attr-defined]


def test_without_evidence_the_runtime_decides(
    loads: Callable[..., tuple[list[bool], Callable[[Kernels], Loaded]]],
) -> None:
    loaded, load = loads(9.0, 0.0)
    _, chosen = choose(load, [])  # type: ignore[arg-type]
    assert (loaded, chosen.kleidiai) == ([True], True)
    assert "no texts" in chosen.why


def test_what_weights_were_laid_out_for_is_not_chosen_again(
    loads: Callable[..., tuple[list[bool], Callable[[Kernels], Loaded]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(kernels, "to_choose", lambda: True)
    loaded, load = loads(0.0, 0.0)
    (tmp_path / FILE).write_bytes(msgspec.json.encode(Kernels(False, "measured when they were made")))
    engine = open_chosen(load, tmp_path, tmp_path)  # type: ignore[arg-type]
    assert loaded == [False]
    assert engine.kernels == "measured when they were made"  # type: ignore[attr-defined]
    engine.release()
    (tmp_path / FILE).write_text("no record")
    assert open_chosen(load, tmp_path, tmp_path).kernels.startswith("KleidiAI")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "expected"),
    [
        ("Features\t: fp asimd asimddp\n", "aarch64", True),
        ("Features\t: fp asimd crc32\n\nFeatures\t: fp asimd asimddp\n", "aarch64", True),
        ("Features\t: fp asimd crc32 cpuid\n", "aarch64", False),
        ("model name\t: none\n", "aarch64", False),
        ("flags\t: avx2 avx512_vnni\n", "x86_64", False),
    ],
)
def test_there_is_a_choice_on_arm_with_dot_product_alone(cpuinfo: str, machine: str, expected: bool) -> None:
    assert to_choose(cpuinfo, machine) is expected


def test_the_real_engine_says_what_it_computes_with(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every processor the switch is taken and the drift is measured; on most there is nothing to choose."""
    engine = open_engine(tiny_bundle, threads=2)
    assert bool(engine.facts.kernels) == to_choose()
    engine.release()
    canaries = evidence(tiny_bundle)
    assert canaries
    for name in ("batched", "genai"):
        monkeypatch.setattr(kernels, "to_choose", lambda: True)
        engine = open_engine(tiny_bundle, engine=name, threads=2)
        assert "of what the bundle's evidence allows" in engine.facts.kernels
        assert drift(engine, canaries) < 1
        engine.release()
        monkeypatch.setattr(
            kernels, "choose", lambda load, canaries, progress: (load(WITHOUT), Kernels(False, "for a test"))
        )
        engine = open_engine(tiny_bundle, engine=name, threads=2)
        assert engine.facts.kernels == "for a test"
        assert drift(engine, canaries) < 1
        engine.release()
        monkeypatch.undo()


def test_a_person_reads_it_where_the_engine_is_named() -> None:
    facts = EngineInfo("batched", "every check passed", 8, 512, 99, [], 1.0, "seccomp", reproducible_why="alike")
    assert (
        msgspec.structs.replace(facts, kernels="KleidiAI: it drifts").summary == f"{facts.summary}; KleidiAI: it drifts"
    )


def test_derived_weights_are_laid_out_for_the_kernels_that_were_chosen(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "to_choose", lambda: True)
    monkeypatch.setattr(kernels, "choose", lambda load, canaries, progress: (load(WITHOUT), Kernels(False, "measured")))
    chosen, verdict = prove(tiny_bundle, 2, False)
    assert chosen == Kernels(False, "measured")
    assert verdict.threads == 2
    prepack(tiny_bundle / "model.onnx", tmp_path, chosen)
    keep(tmp_path, chosen, verdict)
    assert (tmp_path / GRAPH_FILE).is_file()
    engine = open_engine(tiny_bundle, threads=2, derived_dir=tmp_path)
    assert engine.facts.kernels == "measured"
    assert drift(engine, evidence(tiny_bundle)) < 1
    engine.release()
