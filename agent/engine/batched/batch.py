"""What a turn of the ``batched`` engine does: who gets a slot, which slice is read, and one token for everybody.

A step reads one slice of the oldest unread prompt, then gives every request that decodes one token in a single run.
Where slices end is settled by the prompt alone (:mod:`agent.engine.batched.slicing`), and wide ones are used only where
the self-test found them equal bit by bit, so that what a request gets depends on nothing but its own tokens, parameters
and seed: bit for bit where the processor's kernels are alike for one row and for many or a lone row is padded
(``reproducible``), else but for the rounding of those kernels, which the self-test measured. A model with two sets of
rope factors takes the long ones for a request that may outgrow the short ones, from its first token on; such requests
are run apart from the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from numpy.typing import NDArray

from agent.engine.batched.pool import Pool
from agent.engine.batched.positions import Positions
from agent.engine.batched.prefixes import Prefixes, shared_length
from agent.engine.batched.runner import Runner
from agent.engine.batched.slicing import SLICE, Slicing
from agent.engine.batched.slots import Move, Slots
from agent.engine.batched.speculation import Speculation
from agent.engine.interface import StepEvent
from agent.engine.pictures.features import Features
from agent.engine.runtime_errors import runtime_errors
from agent.engine.sequence import TokenSequence


class StepRules(NamedTuple):
    """How this model is run here. ``wide``: tokens of a prompt to read at once while nobody decodes; ``pads``: a row
    that would run alone gets company; ``drafts``: tokens are drafted for it; ``switch``: tokens after which the long
    rope factors are needed, 0 where no request gets there; ``slicing``: how prompts are cut.
    """

    wide: int
    pads: bool
    drafts: bool
    switch: int
    slicing: Slicing = Slicing()


class _SlotSequence:
    """A request in a slot: how many of its tokens have keys and values there, and how wide its masks are at least.

    ``siblings`` are more answers to it, which go on from its prompt once that is read; ``features`` are the pictures in
    it, and ``positions`` where its tokens stand, where that is not one behind the other.
    """

    def __init__(
        self, answer: TokenSequence, width: int, features: Sequence[Features], positions: Positions | None = None
    ) -> None:
        self.answer = answer
        self.width = width
        self.features = features
        self.positions = positions
        self.filled = 0
        self.siblings: list[_SlotSequence] = []
        self.speculation = Speculation()

    @property
    def scope(self) -> str:
        """Whose prompts it may share: its client's, with the same rope factors."""
        return f"{self.answer.generation.client}\0{self.width}"

    def known(self, slicing: Slicing) -> tuple[int, ...]:
        """The part of the prompt that was read as any prompt is that begins with it."""
        prompt = self.answer.prompt
        return tuple(prompt[: slicing.cut(prompt, min(self.filled, len(prompt)))])


class Batch:
    """The requests that this model runs: those that wait for a slot, those that are read, and those that decode."""

    def __init__(self, runner: Runner, pool: Pool, prefixes: Prefixes[NDArray[Any]], rules: StepRules) -> None:
        self.runner = runner
        self.slicing = rules.slicing
        self._pool = pool
        self._prefixes = prefixes
        self._rules = rules
        self._slots: Slots[_SlotSequence] = Slots(pool.slots)
        self._reading: deque[_SlotSequence] = deque()
        self._waiting: deque[_SlotSequence] = deque()

    @property
    def empty(self) -> bool:
        """Whether no request has a slot."""
        return self._slots.free == self._pool.slots

    @property
    def next_read(self) -> int:
        """See :class:`agent.engine.interface.Engine`: a picture may have to be read in one piece."""
        if self._reading:
            sequence = self._reading[0]
            tokens = self._slice_end(sequence) - sequence.filled
        elif self._waiting and self._slots.free:  # what is known of its beginning is found when it gets a slot
            tokens = self.slicing.longest(self._waiting[0].answer.prompt)
        else:
            tokens = 0
        return tokens if tokens > self._rules.wide else 0

    @property
    def busy(self) -> bool:
        """Whether :meth:`step` has anything to do."""
        return bool(self._waiting or self._reading or self._slots.decoding)

    def enter(self, answers: Sequence[TokenSequence], features: Sequence[Features]) -> None:
        """Put the answers to one request in line; the prompt is read once, for all of them."""
        positions = self.runner.find_positions(answers[0].prompt, features)
        first, *others = [_SlotSequence(answer, self._width(answer), features, positions) for answer in answers]
        first.siblings = others
        self._waiting.append(first)

    def step(self) -> list[StepEvent]:
        """Give slots to who waits, read a slice, and choose a token for everybody who decodes."""
        while self._waiting and self._slots.free:
            self._start(self._waiting.popleft())
        events: list[StepEvent] = []
        with runtime_errors("the model failed"):
            if self._reading:
                events.extend(self._read_slice(self._reading[0]))
            if self._slots.decoding:
                events.extend(self._decode())
        return events

    def find(self, request: int) -> list[TokenSequence]:
        """The answers to a request that are not over."""
        return [sequence.answer for sequence in self._find(request)]

    def drop(self, request: int) -> list[StepEvent]:
        """End what there is of a request, wherever it is."""
        events: list[StepEvent] = []
        for found in self._find(request):
            events.append(found.answer.end("cancelled"))
            found.siblings = []
            if found in self._waiting:
                self._waiting.remove(found)
            elif self._slots.holds(found):
                self._leave(found)
        return events

    def release(self) -> None:
        """Forget all requests, and give the model back."""
        self._waiting.clear()
        self._reading.clear()
        self._prefixes.clear()
        self._slots = Slots(1)
        self._pool.forget()
        del self.runner

    def _find(self, request: int) -> list[_SlotSequence]:
        here = (*self._slots.decoders(), *self._reading, *self._waiting)
        found = [sequence for sequence in here if sequence.answer.generation.request == request]
        return found + [sibling for sequence in found for sibling in sequence.siblings]

    def _width(self, answer: TokenSequence) -> int:
        """The narrowest mask it may be run with: beyond the switch if its text may get that long, or it stays below.

        The last token of an answer is never fed back.
        """
        if not self._rules.switch:
            return 0
        if len(answer.prompt) + answer.limit - 1 > self._rules.switch:
            return self._rules.switch + 1
        answer.keep_within(self._rules.switch - len(answer.prompt) + 1)
        return 0

    def _start(self, sequence: _SlotSequence) -> None:
        """Give it a slot and whatever is known of its beginning; the last token is always read, for its logits."""
        slot = self._slots.assign(sequence)
        self._reading.append(sequence)
        prompt, cut = sequence.answer.prompt[:-1], self.slicing.cut
        entry, length = self._prefixes.find(sequence.scope, prompt, cut)
        neighbour: _SlotSequence | None = None
        for other in (*self._slots.decoders(), *self._reading):
            if other is not sequence and other.scope == sequence.scope:
                shared = cut(prompt, shared_length(other.known(self.slicing), prompt))
                if shared > length:
                    neighbour, length = other, shared
        if neighbour is not None:
            self._pool.copy(self._slots.where(neighbour), slot, length)
        elif entry is not None:
            self._pool.put(slot, entry.kept, length)
        sequence.filled = sequence.answer.cached_tokens = length

    def _read_slice(self, sequence: _SlotSequence) -> list[StepEvent]:
        prompt = sequence.answer.prompt
        slot = self._slots.where(sequence)
        end = self._slice_end(sequence)
        piece = prompt[sequence.filled : end]
        logits = self.runner.prefill(
            slot, sequence.filled, piece, sequence.width, last=True, positions=sequence.positions
        )
        sequence.filled = end
        if end < len(prompt):
            return []
        self._reading.popleft()
        self._apply(self._slots.join(slot), sequence.filled)
        begun = [sequence, *self._fork(sequence)]
        events = [event for each in begun for event in each.answer.choose(logits[-1])]
        for each in begun:
            if each.answer.finished:
                self._leave(each)
        return events

    def _slice_end(self, sequence: _SlotSequence) -> int:
        width = SLICE if self._slots.decoding else self._rules.wide
        return self.slicing.end(sequence.answer.prompt, sequence.filled, width)

    def _fork(self, sequence: _SlotSequence) -> list[_SlotSequence]:
        """Give more answers to the same prompt a slot each, with what was read of it; those that begin now.

        What finds no slot waits as the next in line, and finds its beginning as any request does.
        """
        siblings, sequence.siblings = sequence.siblings, []
        begun = siblings[: self._slots.free]
        for sibling in begun:
            slot = self._slots.assign(sibling)
            self._pool.copy(self._slots.where(sequence), slot, sequence.filled)
            sibling.filled = sibling.answer.cached_tokens = sequence.filled
            self._apply(self._slots.join(slot), sibling.filled)
        self._waiting.extendleft(reversed(siblings[len(begun) :]))
        return begun

    def _decode(self) -> list[StepEvent]:
        """One token for everybody: one run for each row of neighbours with the same rope factors. Who is alone may get
        more at once.
        """
        sequences = self._slots.decoders()
        if self._rules.drafts and len(sequences) == 1 and not self._reading and (draft := _draft(sequences[0])):
            return self._verify(sequences[0], draft)
        events: list[StepEvent] = []
        first = 0
        for width, neighbours in groupby(sequences, key=lambda sequence: sequence.width):
            group = list(neighbours)
            tokens, filled = [one.answer.tokens[-1] for one in group], [one.filled for one in group]
            if self._rules.pads and len(group) == 1:
                rows = self.runner.decode_padded(first, tokens[0], filled[0], width, group[0].positions)
            else:
                rows = self.runner.decode(first, tokens, filled, width, [one.positions for one in group])
            for sequence, row in zip(group, rows, strict=True):
                sequence.filled += 1
                events.extend(sequence.answer.choose(row))
            first += len(group)
        for sequence in sequences:
            if sequence.answer.finished:
                self._leave(sequence)
        return events

    def _verify(self, sequence: _SlotSequence, draft: list[int]) -> list[StepEvent]:
        """Read ``draft`` behind the last token, and choose for as long as what is chosen was drafted. Keys and values
        of the rest lie behind what is filled, where nobody reads them.
        """
        answer, events = sequence.answer, list[StepEvent]()
        slot, begun = self._slots.where(sequence), len(sequence.answer.tokens)
        rows = self.runner.prefill(
            slot, sequence.filled, [answer.tokens[-1], *draft], sequence.width, positions=sequence.positions
        )
        for row, drafted in zip(rows, [*draft, None], strict=True):
            sequence.filled += 1
            events.extend(answer.choose(row))
            if answer.finished or answer.tokens[-1] != drafted:
                break
        sequence.speculation.note(len(draft), len(answer.tokens) - begun - 1)
        if answer.finished:
            self._leave(sequence)
        return events

    def _leave(self, sequence: _SlotSequence) -> None:
        """Free its slot at once, keeping what may be of use again."""
        slot = self._slots.where(sequence)
        if sequence in self._reading:
            self._reading.remove(sequence)
        known = sequence.known(self.slicing)
        size = len(known) * self._pool.token_bytes
        if self._prefixes.wants(sequence.scope, known, size):
            self._prefixes.keep(sequence.scope, known, self._pool.take(slot, len(known)), size)
        move = self._slots.leave(slot)
        if move is not None:
            self._apply(move, self._slots.decoders()[move.target].filled)
        if not self._slots.decoding and not self._reading:
            self._pool.forget()

    def _apply(self, move: Move | None, tokens: int) -> None:
        if move is None:
            return
        if move.kind == "copy":
            self._pool.copy(move.source, move.target, tokens)
        else:
            longest = max(sequence.filled for sequence in (*self._slots.decoders(), *self._reading))
            self._pool.swap(move.source, move.target, longest)


def _draft(sequence: _SlotSequence) -> list[int]:
    """What may come next of an answer, no more than it may still get."""
    answer = sequence.answer
    return sequence.speculation.draft(answer.prompt, answer.tokens, answer.limit - len(answer.tokens) - 1)
