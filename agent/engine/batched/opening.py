"""From a bundle to a model that is ready to run: loaded, its memory divided, proved here, and what it promises settled.

All of it happens once, before the first request; :mod:`agent.engine.batched.batch` is what happens from then on.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from msgspec.structs import replace
from numpy.typing import NDArray

from agent.engine.batched.batch import StepRules
from agent.engine.batched.independence import Drafting, promise, settle_drafting
from agent.engine.batched.loading import Eyes, LoadedModel, load
from agent.engine.batched.pool import Pool
from agent.engine.batched.prefixes import Prefixes
from agent.engine.batched.runner import Runner
from agent.engine.batched.slicing import Slicing
from agent.engine.batched.verdict import Verdict, measure, recorded, trial_size
from agent.engine.config import read_config
from agent.engine.grammar import Grammars
from agent.engine.interface import Facts, Progress, silent
from agent.engine.load_options import DEFAULT_MODE, Mode, ModelFiles, Resources
from agent.engine.memory import allocatable_bytes, plan_cache
from agent.engine.pictures.looking import Looking
from agent.engine.pictures.plan import PlannedFor
from agent.engine.runtime_errors import Declined, runtime_errors
from agent.engine.tokenizing import Tokenizing
from contract.bundle.device_plan import KvPlan
from contract.bundle.footprint import FEATURES_SHARE, pair_bytes, remembered_picture
from contract.bundle.genai_config import GenaiFacts
from contract.bundle.picture_families import PICTURE_FAMILIES
from contract.errors import EngineFailed

CAPABILITIES = (
    *("chat", "tools", "continuous_batching", "prefix_cache", "stop", "seed", "logprobs", "logit_bias", "min_p"),
    *("min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size"),
    *("response_format", "update"),
)


class ReadyModel(NamedTuple):
    """``looking`` is None where it takes no pictures."""

    runner: Runner
    pool: Pool
    prefixes: Prefixes[NDArray[Any]]
    rules: StepRules
    tokenizing: Tokenizing
    grammars: Grammars
    looking: Looking | None
    verdict: Verdict
    facts: Facts


def open_model(
    files: ModelFiles,
    resources: Resources,
    *,
    mode: Mode = DEFAULT_MODE,
    trial: bool = False,
    progress: Progress = silent,
) -> ReadyModel:
    """Load the model of ``files`` and see what it can promise here. ``trial``: it is loaded for the verdict of its
    self-test, which is to hold for every load after, and not to serve. ``progress`` hears how far it is.

    Raises:
        Declined: the graph or this processor do not allow what batching needs.
        EngineFailed: the bundle cannot be loaded at all.
    """
    started = time.monotonic()
    found = read_config(files.bundle_dir)
    known = None if trial else recorded(files.derived_dir, resources.threads)
    loaded = load(files, found, resources, known=known is not None, trial=trial, hear=progress)
    # Only now is it known what the weights take.
    plan = _plan(loaded, found, files, resources, trial=trial)
    pool = Pool(loaded.decoder, plan.slots, plan.length)
    runner, verdict = _prove(loaded, pool, known, resources.threads, progress)
    promised = promise(verdict.proof, pool.slots, reproducible=mode.reproducible)
    drafting = settle_drafting(promised, verdict.verification, pool.slots, mode)
    grammars = Grammars(files.bundle_dir, loaded.decoder.vocab_size, found.eos_token_ids)
    looking, prefix_bytes = _share_prefixes(loaded, found, plan)
    return ReadyModel(
        runner,
        pool,
        Prefixes(prefix_bytes),
        _rules(verdict, drafting, pool, Slicing(together=loaded.decoder.token_numbers is not None)),
        loaded.tokenizing,
        grammars,
        looking,
        verdict,
        Facts(
            engine="batched",
            why="every check for batching passed",
            slots=pool.slots,
            context_length=pool.length,
            vocab_size=loaded.decoder.vocab_size,
            capabilities=(
                *(CAPABILITIES if loaded.tokenizing.chat else CAPABILITIES[2:]),
                *(["vision"] if looking else []),
            ),
            load_seconds=time.monotonic() - started,
            independence=drafting.independence,
            speculation=drafting.why,
        ),
    )


def _plan(loaded: LoadedModel, found: GenaiFacts, files: ModelFiles, resources: Resources, *, trial: bool) -> KvPlan:
    """Raises:
    Declined: there is too little memory for this model.
    """
    decoder, eyes = loaded.decoder, loaded.eyes
    plan = plan_cache(
        decoder.kv_bytes_per_token,
        decoder.context_length,
        files.folders,
        max_bytes=resources.max_bytes,
        leaving=resources.reclaimable_bytes - (0 if eyes is None else eyes.scratch),
        slots=resources.slots,
        least=found.least_cache,
        picture=_picture_bytes(eyes, decoder.kv_bytes_per_token, found),
    )
    if trial:
        slots, length = trial_size(decoder, allocatable_bytes())
        plan = replace(plan, slots=slots, length=length)
    if not plan.slots:
        raise Declined(f"{plan.budget >> 20} MiB are too little memory for this model")
    if plan.length < found.least_cache:
        raise Declined(f"there is memory for {plan.length} tokens, and its window has {found.least_cache}")
    return plan


def _picture_bytes(eyes: Eyes | None, kv_token: int, found: GenaiFacts) -> int:
    if eyes is None or eyes.encoder is None:
        return 0
    return remembered_picture(eyes.encoder.look, kv_token, found.hidden_size)


def _prove(
    loaded: LoadedModel, pool: Pool, known: Verdict | None, threads: int, progress: Progress
) -> tuple[Runner, Verdict]:
    """Run what the self-test runs, unless what it found is ``known`` for so many slots.

    Raises:
        Declined: it does not run as it should.
    """
    decoder, eyes = loaded.decoder, loaded.eyes
    try:
        with runtime_errors("it does not run as it should"):
            known = known if known is not None and known.slots >= pool.slots else None
            embedding = None if eyes is None else eyes.embedding
            shows_all = None if known is None else known.shows_all
            runner = Runner(loaded.session, decoder, pool, shows_all, embedding)
            runner.after_run = lambda: progress("self-test")
            verdict = known or measure(runner, pool, decoder, threads)
            runner.after_run = None
    except EngineFailed as error:
        raise Declined(error.message) from error
    return runner, verdict


def _rules(verdict: Verdict, drafting: Drafting, pool: Pool, slicing: Slicing) -> StepRules:
    switch = verdict.proof.switch
    switch = switch if switch < pool.length else 0
    return StepRules(verdict.wide, drafting.independence.pads, drafting.on, switch, slicing)


def _share_prefixes(loaded: LoadedModel, found: GenaiFacts, plan: KvPlan) -> tuple[Looking | None, int]:
    """Who looks at pictures, and how many bytes remembered prompts may take beside what it remembers of pictures."""
    eyes = loaded.eyes
    if eyes is None or eyes.encoder is None:
        return None, plan.prefix_bytes
    eyes.cache.budget = int(plan.prefix_bytes * FEATURES_SHARE)
    encoder, in_pieces = eyes.encoder, loaded.decoder.token_numbers is not None
    about = PlannedFor(
        encoder.look,
        plan.length,
        found.hidden_size,
        encoder.patch_bytes,
        piece_bytes=pair_bytes(found) * plan.length if in_pieces else 0,
        low=PICTURE_FAMILIES[found.model_type].low != "same",
    )
    return Looking(eyes.encoder, eyes.cache, about), plan.prefix_bytes - eyes.cache.budget
