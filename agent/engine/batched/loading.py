"""Loading a model: what Python reads of a bundle, and the session, at the same time.

The runtime lays weights out without Python, which reads tokenizer and template meanwhile. Where this graph was found
fit before, the session is begun at once; else only when its nodes were looked at, since it may be another engine's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from agent.engine.batched.embedding import Embedding
from agent.engine.batched.graph import Decoder, derived_graph, read_decoder
from agent.engine.batched.runner import open_session
from agent.engine.interface import Progress
from agent.engine.load_options import ModelFiles, Resources
from agent.engine.pictures.encoder import PictureEncoder
from agent.engine.pictures.features import FeatureCache
from agent.engine.runtime_errors import Declined, runtime_errors
from agent.engine.tokenizing import Tokenizing
from agent.host.process_effort import Effort, own_effort
from contract.bundle.genai_config import GenaiFacts
from contract.chat.limits import leave_memory_to

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the libraries are first imported


PULSE_SECONDS = 1.0
"""Between two looks at whether a load still advances."""


class Eyes(NamedTuple):
    """The parts of a model that sees; without ``encoder`` it is loaded to read words alone."""

    embedding: Embedding
    cache: FeatureCache
    encoder: PictureEncoder | None

    @property
    def scratch(self) -> int:
        """Bytes that a look at a picture as a whole takes: keys and values leave them free."""
        return 0 if self.encoder is None else self.encoder.least_scratch


class LoadedModel(NamedTuple):
    """``session`` is an ``onnxruntime.InferenceSession`` of the graph that ``decoder`` describes."""

    decoder: Decoder
    tokenizing: Tokenizing
    session: Any
    eyes: Eyes | None = None


def load(
    files: ModelFiles, facts: GenaiFacts, resources: Resources, *, known: bool, trial: bool, hear: Progress
) -> LoadedModel:
    """The model of ``files``, its weights prepacked if they are there so; ``known``: its graph was found fit before,
    ``trial``: it will be shown no pictures. ``hear`` is told how far it is.

    Raises:
        Declined: the graph has something that this engine has not been taught.
        EngineFailed: it cannot be loaded at all.
    """
    bundle_dir = files.bundle_dir
    with ThreadPoolExecutor(1) as beside:

        def begin() -> Future[Any]:
            hear("reading the weights")
            opening = beside.submit(
                open_session,
                derived_graph(bundle_dir / facts.filename, files.derived_dir),
                resources.threads,
                resources.kernels,
                logits=facts.outputs.get("logits", "logits"),
            )
            leave_memory_to(opening)
            return opening

        opening = begin() if known else None
        decoder = read_decoder(bundle_dir, facts)
        opening = opening or begin()
        with runtime_errors("the model cannot be loaded"):
            import onnxruntime_genai

            tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Config(str(bundle_dir)))
            tokenizing = Tokenizing(tokenizer, bundle_dir, facts.eos_token_ids)
            session = _wait(opening, hear)
            eyes = _open_eyes(bundle_dir, facts, resources, tokenizing, trial=trial) if decoder.embedded else None
    hear("the weights are loaded")
    return LoadedModel(decoder, tokenizing, session, eyes)


def _wait(opening: Future[Any], hear: Progress, effort: Callable[[], Effort] = own_effort) -> Any:
    """What is being opened. ``hear`` is told of it as long as this process computes or reads: a slow processor or disk
    takes minutes for it, and what hangs does neither.
    """
    before = effort()
    while not wait([opening], PULSE_SECONDS).done:
        after = effort()
        if after.advanced(before, PULSE_SECONDS):
            hear("reading the weights")
        before = after
    return opening.result()


def _open_eyes(
    bundle_dir: Path, facts: GenaiFacts, resources: Resources, tokenizing: Tokenizing, *, trial: bool
) -> Eyes:
    """Raises:
    Declined: they cannot be driven apart from the decoder.
    """
    cache = FeatureCache()
    sees = tokenizing.chat and not trial  # pictures stand in messages alone
    try:
        encoder = PictureEncoder(bundle_dir, facts, resources, tokenizing) if sees else None
        return Eyes(Embedding(bundle_dir, facts, resources, cache), cache, encoder)
    except Exception as error:  # whatever the runtimes raise
        raise Declined(f"its encoder cannot be driven apart: {str(error) or type(error).__name__}") from error
