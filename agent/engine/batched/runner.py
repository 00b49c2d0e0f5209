"""Runs the graph over a contiguous run of slots, reading and writing keys and values in place.

Rules of GroupQueryAttention on a CPU: a batch of one may bring many tokens, a larger batch one token each; row *b* of
the mask has ones up to that sequence's own length, which is also where its new key and value are written; a row
without ones is an error, and so are a length beyond the pool and a token outside the vocabulary. The mask may be wider
than its longest row (``width``): that is how a sequence gets the long rope factors from its first token on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.engine.batched.graph import Decoder
from agent.engine.batched.logits_to_keep import START, with_start
from agent.engine.batched.pool import Pool
from agent.engine.batched.positions import Positions
from agent.engine.kernels import AS_IT_COMES, Kernels
from agent.engine.pictures.features import Features
from contract.errors import BundleRefused

CPU = ("cpu", 0)

STARTS = {rows: np.array([-rows], dtype=np.int64) for rows in (0, 1)}
MAX_EDITED_BYTES = 2**26
"""Larger graphs hold their weights inside, and are not copied."""


class Embeds(Protocol):
    """What a decoder reads for tokens (:class:`agent.engine.batched.embedding.Embedding`)."""

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]: ...
    def number(self, ids: NDArray[np.int64]) -> NDArray[np.int64]: ...


PADDING = 0
"""A token that every vocabulary has."""


class Runner:
    """One session and its bindings; a binding is made once for each run of slots (making one costs half a ms).

    Every method may raise whatever onnxruntime raises. ``after_run`` is called after each run, where it is set.
    ``shows_all`` says whether the graph has logits for every token; None: that is tried. ``embedding`` is for decoders
    that read no tokens.
    """

    def __init__(
        self,
        session: Any,
        decoder: Decoder,
        pool: Pool,
        shows_all: bool | None = None,
        embedding: Embeds | None = None,
    ) -> None:
        self.after_run: Callable[[], None] | None = None
        self._session = session
        self._decoder = decoder
        self._pool = pool
        self._embedding = embedding
        self._bindings: dict[tuple[int, int], Any] = {}
        self._counting = np.arange(pool.length, dtype=np.int64)
        self._starts = any(value.name == START for value in session.get_inputs())
        self._decode_logits = np.empty((pool.slots, 1, decoder.vocab_size), dtype=np.float32)
        self.shows_all = self._probe() if shows_all is None else shows_all

    def prefill(
        self,
        slot: int,
        past: int,
        tokens: Sequence[int],
        width: int = 0,
        *,
        last: bool = False,
        positions: Positions | None = None,
    ) -> NDArray[np.float32]:
        """Read ``tokens`` behind the ``past`` ones of a slot; logits ``[tokens, vocab]``, or of the last one alone
        where no more are wanted (``last``) or shown. ``positions``: where the prompt's tokens stand, if that is not one
        behind the other.
        """
        ids = np.array([tokens], dtype=np.int64)
        end = past + len(tokens)
        mask = np.ones((1, max(end, width)), dtype=np.int64)
        mask[:, end:] = 0
        counted = self._counting[past:end].reshape(1, -1)
        along = self._along_axes(counted) if positions is None else positions.of(past, end)[:, None]
        rows = 1 if (last and self._starts) or not self.shows_all else len(tokens)
        logits = np.empty((1, rows, self._decoder.vocab_size), dtype=np.float32)
        self._run(slot, ids, mask, np.ascontiguousarray(along), logits)
        found: NDArray[np.float32] = logits[0]
        return found

    def decode(
        self,
        first: int,
        tokens: Sequence[int],
        pasts: Sequence[int],
        width: int = 0,
        positions: Sequence[Positions | None] = (),
    ) -> NDArray[np.float32]:
        """One token for each slot from ``first`` on; logits ``[slots, vocab]``, valid until the next call. Each
        slot's prompt has ``positions``, where its tokens do not stand one behind the other.
        """
        count = len(tokens)
        lengths = np.array(pasts, dtype=np.int64).reshape(count, 1)
        mask = (self._counting[: max(int(lengths.max()) + 1, width)] <= lengths).astype(np.int64)
        ids = np.array(tokens, dtype=np.int64).reshape(count, 1)
        logits = self._decode_logits[:count]
        after = [past if own is None else own.after(past) for past, own in zip_longest(pasts, positions)]
        self._run(first, ids, mask, self._along_axes(np.array(after, dtype=np.int64).reshape(count, 1)), logits)
        found: NDArray[np.float32] = logits[:, 0]
        return found

    def decode_padded(
        self, slot: int, token: int, past: int, width: int = 0, positions: Positions | None = None
    ) -> NDArray[np.float32]:
        """As :meth:`decode` for one slot, but with the kernels of a batch: a row of no meaning runs beside it.

        That row takes the first place of a neighbouring slot, whose contents are kept.
        """
        at = 0 if slot + 1 < self._pool.slots else 1
        first, other = slot - at, slot + 1 - 2 * at
        tokens, pasts = [PADDING] * 2, [0] * 2
        tokens[at], pasts[at] = token, past
        kept = self._pool.take(other, 1)
        rows = self.decode(first, tokens, pasts, width, (None, positions) if at else (positions, None))
        self._pool.put(other, kept)
        return rows[at : at + 1]

    def _along_axes(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[batch, tokens]``, or as often as a token has positions in this graph: words stand alike along all axes."""
        axes = self._decoder.axes
        return positions if axes == 1 else np.repeat(positions[None], axes, axis=0)

    def find_positions(self, prompt: Sequence[int], features: Sequence[Features]) -> Positions | None:
        """Where the tokens of ``prompt`` stand, in which ``features`` are, where that is not one behind the other."""
        grids = {each.number: each.grid for each in features if each.grid is not None}
        return Positions(prompt, grids) if grids and self._decoder.axes > 1 else None

    def _probe(self) -> bool:
        """Whether the graph shows logits for every token: one with a pruned head computes the last ones only."""
        binding = self._session.io_binding()
        self._bind_cache(binding, 0, 1)
        ids, mask, positions = (np.array([row], dtype=np.int64) for row in ([0, 0], [1, 1], [0, 1]))
        bound = self._bind_inputs(binding, ids, mask, self._along_axes(positions))
        self._bind_start(binding, 0)
        binding.bind_output(self._decoder.logits, CPU[0])  # bound last, so listed last; of a size that it decides
        self._session.run_with_iobinding(binding)
        del bound
        return bool(binding.get_outputs()[-1].shape()[1] == 2)

    def _run(
        self,
        first: int,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> None:
        assert mask.shape[1] <= self._pool.length, "a sequence outgrew its slot"
        binding = self._binding(first, len(ids))
        bound = self._bind_inputs(binding, ids, mask, positions)
        self._bind_start(binding, logits.shape[1] if logits.shape[1] < ids.shape[1] else 0)
        binding.bind_output(self._decoder.logits, *CPU, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        del bound
        if self.after_run is not None:
            self.after_run()

    def _binding(self, first: int, count: int) -> Any:
        binding = self._bindings.get((first, count))
        if binding is None:
            binding = self._bindings[first, count] = self._session.io_binding()
            self._bind_cache(binding, first, count)
        return binding

    def _bind_cache(self, binding: Any, first: int, count: int) -> None:
        """Past and present are the same memory."""
        kind = self._pool.array.dtype.type
        for index, (past, present) in enumerate(zip(self._decoder.past, self._decoder.present, strict=True)):
            part = self._pool.array[index, first : first + count]
            binding.bind_input(past, *CPU, kind, part.shape, part.ctypes.data)
            binding.bind_output(present, *CPU, kind, part.shape, part.ctypes.data)

    def _bind_inputs(
        self, binding: Any, ids: NDArray[np.int64], mask: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> list[NDArray[Any]]:
        """What is bound, which has to live as long as the run."""
        names = self._decoder
        given: dict[str | None, NDArray[Any]] = {names.attention_mask: mask, names.position_ids: positions}
        if self._embedding is None:
            given[names.input_ids] = ids
        else:
            given[names.input_ids] = self._embedding.embed(ids)
            given[names.token_numbers] = self._embedding.number(ids)
        given.pop(None, None)
        for name, array in given.items():
            binding.bind_input(name, *CPU, array.dtype.type, array.shape, array.ctypes.data)
        return list(given.values())

    def _bind_start(self, binding: Any, rows: int) -> None:
        """Of how many of the last tokens logits are computed; 0: of all."""
        if self._starts:
            start = STARTS[rows]
            binding.bind_input(START, *CPU, np.int64, start.shape, start.ctypes.data)


def open_session(graph: Path, threads: int, kernels: Kernels = AS_IT_COMES, *, logits: str = "") -> Any:
    """Load a graph; may raise whatever onnxruntime raises. If ``logits`` names its output, whoever runs it may say of
    which tokens they are computed (:mod:`agent.engine.batched.logits_to_keep`), where the graph allows that.
    """
    import onnxruntime

    options = session_options(threads, kernels)
    source = graph_with_start(graph, logits, options) if logits else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def session_options(threads: int, kernels: Kernels = AS_IT_COMES) -> Any:
    """How every session of this engine is set up; what else was tried is in ``benchmarks/RESULTS.md``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning longer burns a core between steps and is no faster.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
    for name, value in kernels.entries.items():
        options.add_session_config_entry(name, value)
    return options


def graph_with_start(graph: Path, logits: str, options: Any) -> bytes | str:
    """What to make a session with ``options`` of: an edited copy of ``graph`` in memory, or its path."""
    try:
        data = graph.read_bytes() if graph.stat().st_size <= MAX_EDITED_BYTES else b""
        edited = with_start(data, logits) if data else None
    except BundleRefused:
        return str(graph)  # whether it can be run is not decided here
    if edited is None:
        return str(graph)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    return edited
