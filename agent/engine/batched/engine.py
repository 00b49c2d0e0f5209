"""Continuous batching behind the stepping interface.

A step reads one slice of the oldest unread prompt, then gives every request that decodes one token in a single run.
Slices always end at multiples of :data:`SLICE` from the beginning of a prompt, and wide ones are used only where the
self-test found them equal bit by bit, so that what a request gets depends on nothing but its own tokens, parameters
and seed: bit for bit where the processor's kernels are alike for one row and for many or a lone row is padded
(``reproducible``), else but for the rounding of those kernels, which the self-test measured. A model with two sets of
rope factors takes the long ones for a request that may outgrow the short ones, from its first token on; such requests
are run apart from the others. Pictures are looked at in a thread beside; in a prompt they are tokens like any other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from msgspec.structs import replace
from numpy.typing import NDArray

from agent.engine.batched.independence import promise, settle_drafting
from agent.engine.batched.loading import load
from agent.engine.batched.pool import Pool
from agent.engine.batched.prefixes import Prefixes, shared_length
from agent.engine.batched.runner import Runner
from agent.engine.batched.slots import Move, Slots
from agent.engine.batched.speculation import Speculation
from agent.engine.batched.verdict import SLICE, measure, recorded, trial_size
from agent.engine.choices import Choices
from agent.engine.config import read_config
from agent.engine.grammar import Grammars
from agent.engine.interface import CanaryScore, Facts, FinishEvent, Generation, Progress, StepEvent, silent
from agent.engine.load_options import DEFAULT_MODE, Mode, ModelFiles, Resources
from agent.engine.memory import allocatable_bytes, plan_cache
from agent.engine.pictures.features import SHARE as FEATURES_SHARE
from agent.engine.pictures.features import Features
from agent.engine.pictures.looking import Looking
from agent.engine.pictures.plan import PlannedFor
from agent.engine.processors import Processors
from agent.engine.runtime_errors import Declined, runtime_errors
from agent.engine.scoring import SCORE_SLICE, canary_score, token_losses
from agent.engine.sequence import LogitRules, TokenSequence, constrain, prepare, rejection, with_changes
from contract.errors import EngineFailed, RequestInvalid

CAPABILITIES = (
    *("chat", "tools", "continuous_batching", "prefix_cache", "stop", "seed", "logprobs", "logit_bias", "min_p"),
    *("min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size"),
    *("response_format", "update"),
)


class _SlotSequence:
    """A request in a slot: how many of its tokens have keys and values there, and how wide its masks are at least.

    ``siblings`` are more answers to it, which go on from its prompt once that is read; ``features`` are the pictures in
    it.
    """

    def __init__(self, answer: TokenSequence, width: int, features: Sequence[Features]) -> None:
        self.answer = answer
        self.width = width
        self.features = features
        self.filled = 0
        self.siblings: list[_SlotSequence] = []
        self.speculation = Speculation()

    @property
    def scope(self) -> str:
        """Whose prompts it may share: its client's, with the same rope factors."""
        return f"{self.answer.generation.client}\0{self.width}"

    @property
    def whole_slices(self) -> tuple[int, ...]:
        """The part of the prompt that was read in whole slices."""
        return tuple(self.answer.prompt[: min(self.filled, len(self.answer.prompt)) // SLICE * SLICE])


class BatchedEngine:
    """See :class:`agent.engine.interface.Engine`. ``trial``: it is loaded for the verdict of its self-test, which is to
    hold for every load after, and not to serve.

    Raises:
        Declined: the graph or this processor do not allow what batching needs.
        EngineFailed: the bundle cannot be loaded at all.
    """

    def __init__(
        self,
        files: ModelFiles,
        resources: Resources,
        *,
        processors: Processors | None = None,
        mode: Mode = DEFAULT_MODE,
        trial: bool = False,
        progress: Progress = silent,
    ) -> None:
        started = time.monotonic()
        self._processors = processors
        bundle_dir, derived_dir, threads = files.bundle_dir, files.derived_dir, resources.threads
        found = read_config(bundle_dir)
        known = None if trial else recorded(derived_dir, threads)
        loaded = load(files, found, resources, known=known is not None, trial=trial, hear=progress)
        decoder, self._tokenizing, eyes = loaded.decoder, loaded.tokenizing, loaded.eyes
        # Only now is it known what the weights take.
        plan = plan_cache(
            decoder.kv_bytes_per_token,
            decoder.context_length,
            files.folders,
            max_bytes=resources.max_bytes,
            leaving=resources.reclaimable_bytes - (0 if eyes is None else eyes.scratch),
        )
        slots, length = trial_size(decoder, allocatable_bytes()) if trial else (plan.slots, plan.length)
        if not slots:
            raise Declined(f"{plan.budget >> 20} MiB are too little memory for this model")
        if length < found.least_cache:
            raise Declined(f"there is memory for {length} tokens, and its window has {found.least_cache}")
        self._pool = Pool(decoder, slots, length)
        try:
            with runtime_errors("it does not run as it should"):
                known = known if known is not None and known.slots >= slots else None
                embed = None if eyes is None else eyes.embedding.embed
                shows_all = None if known is None else known.shows_all
                self._runner = Runner(loaded.session, decoder, self._pool, shows_all, embed)
                self._runner.after_run = lambda: progress("self-test")
                self.verdict = known or measure(self._runner, self._pool, decoder, threads)
                self._runner.after_run = None
        except EngineFailed as error:
            raise Declined(error.message) from error
        proof = self.verdict.proof
        promised = promise(proof, slots, reproducible=mode.reproducible)
        drafting = settle_drafting(promised, self.verdict.verification, slots, mode)
        independence, self._drafts = drafting.independence, drafting.on
        self._wide, self._pads = self.verdict.wide, independence.pads
        self._switch = proof.switch if proof.switch < length else 0
        self._grammars = Grammars(bundle_dir, decoder.vocab_size, found.eos_token_ids)
        self._slots: Slots[_SlotSequence] = Slots(slots)
        self._reading: deque[_SlotSequence] = deque()
        self._waiting: deque[_SlotSequence] = deque()
        self._events: list[StepEvent] = []
        self._choices = Choices()
        self._looking: Looking | None = None
        prefix_bytes = plan.prefix_bytes
        if eyes is not None and eyes.encoder is not None:
            eyes.cache.budget = int(prefix_bytes * FEATURES_SHARE)
            prefix_bytes -= eyes.cache.budget
            about = PlannedFor(found.model_type, length, found.hidden_size, eyes.encoder.patch_bytes)
            self._looking = Looking(eyes.encoder, eyes.cache, about)
        self._prefixes: Prefixes[NDArray[Any]] = Prefixes(prefix_bytes)
        self._token_bytes = decoder.kv_bytes_per_token
        self._facts = Facts(
            engine="batched",
            why="every check for batching passed",
            slots=slots,
            context_length=length,
            vocab_size=decoder.vocab_size,
            capabilities=(
                *(CAPABILITIES if self._tokenizing.chat else CAPABILITIES[2:]),
                *(["vision"] if self._looking else []),
            ),
            load_seconds=time.monotonic() - started,
            independence=independence,
            speculation=drafting.why,
        )

    @property
    def facts(self) -> Facts:
        return self._facts

    def computed_by(self, kernels: str) -> None:
        self._facts = replace(self._facts, kernels=kernels)

    @property
    def busy(self) -> bool:
        return self._at_work or (self._looking is not None and self._looking.busy)

    @property
    def _at_work(self) -> bool:
        return bool(self._events or self._waiting or self._reading or self._slots.decoding)

    @property
    def next_read(self) -> int:
        return 0

    def admit(self, generation: Generation) -> None:
        """See the interface."""
        try:
            _check(generation)
            if generation.pictures and self._looking is not None:
                self._looking.admit(generation)
            else:
                self._enter(generation)
        except RequestInvalid as refused:
            self._events.append(rejection(generation.request, refused))

    def _enter(self, generation: Generation, features: Sequence[Features] = ()) -> None:
        """Put a request in line whose pictures are known.

        Raises:
            RequestInvalid: it does not fit this model.
        """
        prompt, room = prepare(
            generation,
            self._tokenizing,
            context_length=self._facts.context_length,
            vocab_size=self._facts.vocab_size,
            pictures=[each.tokens for each in features],
        )
        answers = [
            TokenSequence(generation, prompt, room, self._tokenizing, self._rules(generation, prompt), choice=choice)
            for choice in range(generation.n)
        ]
        first, *others = [_SlotSequence(answer, self._width(answer), features) for answer in answers]
        self._choices.expect(generation)
        first.siblings = others
        self._waiting.append(first)

    def _look(self) -> None:
        """Put in line whose pictures are known by now."""
        if self._looking is None or not self._looking.busy:
            return
        with runtime_errors("the model failed on a picture"):
            for seen in self._looking.advance(idle=not self._at_work):
                try:
                    if seen.refused is not None:
                        raise seen.refused
                    self._enter(seen.generation, seen.features)
                except RequestInvalid as refused:
                    self._events.append(rejection(seen.generation.request, refused))

    def _rules(self, generation: Generation, prompt: list[int]) -> LogitRules:
        return LogitRules(constrain(generation, prompt, self._tokenizing, self._grammars), self._processors)

    def step(self) -> list[StepEvent]:
        """See the interface and the module's beginning."""
        self._look()
        events, self._events = self._events, []
        while self._waiting and self._slots.free:
            self._start(self._waiting.popleft())
        with runtime_errors("the model failed"):
            if self._reading:
                events.extend(self._read_slice(self._reading[0]))
            if self._slots.decoding:
                events.extend(self._decode())
        merged = self._choices.merge(events)
        while self._choices.abandoned:
            self._drop(self._choices.abandoned.pop())
        return merged

    def update(self, request: int, changes: dict[str, Any]) -> bool:
        if self._looking is not None and (waiting := self._looking.find(request)) is not None:
            fresh = with_changes(waiting, changes)
            self._looking.change(fresh or waiting)
            return fresh is not None
        changed = [found.answer.change(changes) for found in self._find(request)]
        return bool(changed) and all(changed)

    def cancel(self, request: int) -> list[StepEvent]:
        if self._looking is not None and self._looking.cancel(request):
            return [FinishEvent(request, "cancelled", "", 0, 0)]
        return self._choices.merge(self._drop(request))

    def _drop(self, request: int) -> list[StepEvent]:
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
        if self._looking is not None:
            self._looking.close()
        self._choices.forget()
        self._waiting.clear()
        self._reading.clear()
        self._prefixes.clear()
        self._slots = Slots(1)
        self._pool.forget()
        del self._runner

    def score(self, prompt: str, text: str, adapter: str | None = None, picture: bytes | None = None) -> CanaryScore:
        """See the interface.

        Raises:
            EngineFailed: nothing to score, longer than the context, requests are active, or the runtime failed.
        """
        if adapter is not None:
            raise EngineFailed("the batched engine has no adapters")
        if picture is not None and self._looking is None:
            raise EngineFailed("the model of this bundle takes no pictures here")
        if self._slots.free < self._facts.slots or (self._looking is not None and self._looking.busy):
            raise EngineFailed("a canary is scored while nothing else runs")
        with runtime_errors("the model failed on a canary about a picture"):
            seen = None if picture is None or self._looking is None else self._looking.glance(picture)
        ids, first = self._tokenizing.encode_canary(prompt, text, () if seen is None else seen.tokens)
        if len(ids) <= first or len(ids) > self._facts.context_length:
            raise EngineFailed("a canary has no text, or more than the context holds")
        losses: list[float] = []
        filled = 0
        size = SCORE_SLICE if self._runner.shows_all else 1
        with runtime_errors("the model failed on a canary"):
            while filled < len(ids) - 1:
                end = min(filled + size, len(ids) - 1)
                if filled < first - 1:
                    end = min(end, first - 1)
                logits = self._runner.prefill(0, filled, ids[filled:end])
                if filled >= first - 1:
                    losses.extend(token_losses(logits, ids[filled + 1 : end + 1]))
                filled = end
        return canary_score(losses)

    def _find(self, request: int) -> list[_SlotSequence]:
        """The answers to a request that are not over."""
        here = (*self._slots.decoders(), *self._reading, *self._waiting)
        found = [sequence for sequence in here if sequence.answer.generation.request == request]
        return found + [sibling for sequence in found for sibling in sequence.siblings]

    def _width(self, answer: TokenSequence) -> int:
        """The narrowest mask it may be run with: beyond the switch if its text may get that long, or it stays below.

        The last token of an answer is never fed back.
        """
        if not self._switch:
            return 0
        if len(answer.prompt) + answer.limit - 1 > self._switch:
            return self._switch + 1
        answer.keep_within(self._switch - len(answer.prompt) + 1)
        return 0

    def _start(self, sequence: _SlotSequence) -> None:
        """Give it a slot and whatever is known of its beginning; the last token is always read, for its logits."""
        slot = self._slots.assign(sequence)
        self._reading.append(sequence)
        prompt = sequence.answer.prompt[:-1]
        entry, length = self._prefixes.find(sequence.scope, prompt, SLICE)
        neighbour: _SlotSequence | None = None
        for other in (*self._slots.decoders(), *self._reading):
            if other is not sequence and other.scope == sequence.scope:
                shared = shared_length(other.whole_slices, prompt) // SLICE * SLICE
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
        end = slice_end(sequence.filled, len(prompt), SLICE if self._slots.decoding else self._wide)
        logits = self._runner.prefill(slot, sequence.filled, prompt[sequence.filled : end], sequence.width, last=True)
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
        if self._drafts and len(sequences) == 1 and not self._reading and (draft := _draft(sequences[0])):
            return self._verify(sequences[0], draft)
        events: list[StepEvent] = []
        first = 0
        for width, neighbours in groupby(sequences, key=lambda sequence: sequence.width):
            group = list(neighbours)
            tokens, filled = [one.answer.tokens[-1] for one in group], [one.filled for one in group]
            if self._pads and len(group) == 1:
                rows = self._runner.decode_padded(first, tokens[0], filled[0], width)
            else:
                rows = self._runner.decode(first, tokens, filled, width)
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
        rows = self._runner.prefill(slot, sequence.filled, [answer.tokens[-1], *draft], sequence.width)
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
        known = sequence.whole_slices
        size = len(known) * self._token_bytes
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


def slice_end(filled: int, length: int, width: int) -> int:
    """Where the slice that begins at ``filled`` of a prompt ends: what is no whole :data:`SLICE` is read apart."""
    whole = length // SLICE * SLICE
    return length if filled >= whole else min(filled + width, whole)


def _check(generation: Generation) -> None:
    """What this engine leaves to others.

    Raises:
        RequestInvalid: naming the field.
    """
    if generation.num_beams > 1:
        raise RequestInvalid(
            'the batched engine has no beam search: the operator may set engine = "genai" in [worker]',
            field="num_beams",
        )
    if generation.adapter is not None:
        raise RequestInvalid("this bundle has no adapters", field="adapter")
