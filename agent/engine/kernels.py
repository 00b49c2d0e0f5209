"""Which of a runtime's kernels compute on this processor, chosen by what the bundle's own evidence says of them.

On ARM with dot-product instructions the runtime takes KleidiAI's kernels, which are faster and round activations more
coarsely: measured at 0.04 nats a token from fp32 activations where the others are at 0.006. What that does to a model
only the model can say. Every bundle brings texts with the loss that its build measured (the canaries): as long as the
fast kernels stay well within what those may drift, they serve; else the exact ones are tried, and the nearer of the two
serves. What is left of the tolerance is for what a canary is there to find.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.engine.interface import Engine, Progress, silent
from agent.host import isa
from contract.bundle.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Canary, parse_manifest
from contract.errors import EdgeBundleError

DISABLE_KLEIDIAI = "mlas.disable_kleidiai"
"""The runtime's name for it, an entry of a session's configuration."""

FILE = "kernels.json"
"""Beside derived weights, which are laid out for one of the two."""

SHARE = 0.25
"""Of a canary's tolerance: what the fast kernels may take of it. The rest is for damage, which canaries are to find."""

MAX_FILE_BYTES = 4096

NEEDED = "asimddp"
"""The instructions that KleidiAI's INT4 kernels begin at, as ``/proc/cpuinfo`` calls them."""


class Kernels(Struct, frozen=True, forbid_unknown_fields=True):
    """``kleidiai``: as the runtime comes, with KleidiAI's kernels where it has them. ``why`` is for a person; empty
    where there was nothing to choose.
    """

    kleidiai: bool = True
    why: str = ""

    @property
    def entries(self) -> dict[str, str]:
        """What a session's configuration needs for them."""
        return {} if self.kleidiai else {DISABLE_KLEIDIAI: "1"}


AS_IT_COMES = Kernels()


def to_choose(cpuinfo: str | None = None, machine: str | None = None) -> bool:
    """Whether the runtime takes KleidiAI's kernels here, on one core at least."""
    if (machine or isa.architecture()) != "aarch64":
        return False
    text = isa.read_cpuinfo() if cpuinfo is None else cpuinfo
    lines = (line for line in text.splitlines() if line.startswith("Features"))
    return any(NEEDED in line.split() for line in lines)


def recorded(derived_dir: Path | None) -> Kernels | None:
    """What the weights in ``derived_dir`` were laid out for; None if it says nothing."""
    if derived_dir is None:
        return None
    try:
        data = (derived_dir / FILE).read_bytes()[:MAX_FILE_BYTES]
        return msgspec.json.decode(data, type=Kernels)
    except (OSError, msgspec.MsgspecError):
        return None


def evidence(bundle_dir: Path) -> Sequence[Canary]:
    """The texts that the bundle is judged by; none where it has no manifest that can be read."""
    try:
        with (bundle_dir / MANIFEST_FILE).open("rb") as file:
            return parse_manifest(file.read(MAX_MANIFEST_BYTES + 1)).canary
    except (OSError, EdgeBundleError):
        return ()


def open_chosen(
    load: Callable[[Kernels], Engine],
    bundle_dir: Path,
    derived_dir: Path | None = None,
    progress: Progress = silent,
) -> Engine:
    """The engine as ``load`` makes it with the kernels that the evidence asks for; one is loaded at a time.

    Raises:
        Whatever ``load`` and scoring raise.
    """
    if not to_choose():
        return load(AS_IT_COMES)
    if (kernels := recorded(derived_dir)) is not None:
        engine = load(kernels)
    else:
        engine, kernels = choose(load, evidence(bundle_dir), progress)
    engine.computed_by(kernels.why)
    return engine


def choose(
    load: Callable[[Kernels], Engine], canaries: Sequence[Canary], progress: Progress = silent
) -> tuple[Engine, Kernels]:
    """A loaded engine and the kernels that it has."""
    engine = load(AS_IT_COMES)
    if not canaries:
        return engine, Kernels(why="KleidiAI: the bundle brings no texts to measure its drift with")
    fast = drift(engine, canaries, progress)
    if fast <= SHARE:
        return engine, Kernels(why=f"KleidiAI: it drifts by {_percent(fast)} of what the bundle's evidence allows")
    engine = _instead(engine, load, Kernels(kleidiai=False))
    exact = drift(engine, canaries, progress)
    compared = f"{_percent(fast)} of what the bundle's evidence allows, {_percent(exact)} without"
    if exact < fast:
        return engine, Kernels(False, f"without KleidiAI: with it the drift is {compared}")
    return _instead(engine, load, AS_IT_COMES), Kernels(why=f"KleidiAI: with it the drift is {compared}")


def drift(engine: Engine, canaries: Sequence[Canary], progress: Progress = silent) -> float:
    """The farthest that a text's loss is from the build's, as a share of its tolerance; infinite if it is no number."""
    shares = []
    for canary in canaries:
        score = engine.score(canary.prompt, canary.expected_text)
        apart = abs(score.mean_nll - canary.mean_nll) / canary.tolerance
        progress("comparing kernels")
        shares.append(apart if score.finite and math.isfinite(apart) else math.inf)
    return max(shares)


def _instead(engine: Engine, load: Callable[[Kernels], Engine], kernels: Kernels) -> Engine:
    engine.release()
    gc.collect()  # what it holds goes before the other one comes
    return load(kernels)


def _percent(share: float) -> str:
    return "more than can be measured" if math.isinf(share) else f"{share:.0%}"
