"""A bundle on a device of a given size: published, installed, asked, swapped under load; part of ``make size``."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import swap
from benchmarks.peer import letters_of
from benchmarks.swap import Crowd, Site
from benchmarks.watching import GIB, PAUSE, Watched, bytes_in, killed_for_memory, look, memory_group
from contract.bundle.device_plan import Box, DevicePlan
from packager.commands.fit import plan_bundle
from packager.evaluate.comparison import find_bundle
from packager.vision.families import vision_family
from packager.vision.family import ENCODER_FILE
from packager.vision.pictures import draw, encode_png

PICTURE_SIDE = 672
LONG_TOKENS = 8
"""Of an answer to a long prompt."""

TEMPLATE_TOKENS = 64
"""At most, which a chat template adds to a prompt, and the request's number."""

WAIT_SECONDS = 3600.0
"""A model of some gigabytes is hashed, tried and loaded in it, on a slow disk."""


class Watcher:
    """Looks at a process and its children until :meth:`stop`."""

    def __init__(self, pid: int) -> None:
        self.found = Watched()
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(PAUSE):
            look(self._process, self.found)

    def stop(self) -> Watched:
        self._over.set()
        self._thread.join()
        return self.found


def time_encoder(bundle: Path, checkpoint: Path) -> str:
    """How long the bundle's encoder takes for a picture as builds show it, on as many threads as there are cores."""
    import onnxruntime

    family = vision_family(checkpoint)
    prepared = family.prepare(checkpoint, draw("stripes", family.side(checkpoint)))
    session = onnxruntime.InferenceSession(str(bundle / ENCODER_FILE), providers=["CPUExecutionProvider"])
    session.run(None, prepared.inputs)
    started = time.monotonic()
    session.run(None, prepared.inputs)
    took = time.monotonic() - started
    return f"the encoder takes {took:.1f} s for a picture of {prepared.features} features"


class Asked(NamedTuple):
    """``limit`` is the device's memory in GiB, ``tokens`` the length of an answer; ``full``: in the end every slot is
    filled to its whole length, all at once.
    """

    limit: float
    tokens: int
    full: bool = False


def serve(bundle: Path, place: Path, asked: Asked) -> str:
    """What is printed of the bundle on a device; everything is made in ``place``, of which the agent's log stays."""
    swap.WAIT_SECONDS = WAIT_SECONDS
    root, limit = os.geteuid() == 0, asked.limit
    plan = plan_bundle(find_bundle(str(bundle), place), Box(int(limit * GIB), os.cpu_count() or 1))
    if not plan.fits:
        return f"on a device of {limit:g} GiB: {plan.short}"
    site_place = place / "device"
    try:
        with memory_group(limit if root else None) as group:
            site = Site(site_place, bundle, "overlap", group)
            try:
                return "\n".join(_rows(site, site_place, plan, asked, group, sees=(bundle / ENCODER_FILE).is_file()))
            finally:
                site.close()
    finally:
        shutil.copyfile(site_place / "agent.log", place / "agent.log")
        subprocess.run(["chmod", "-R", "u+w", str(site_place)], check=True)
        shutil.rmtree(site_place)


def _rows(site: Site, place: Path, plan: DevicePlan, asked: Asked, group: Path | None, *, sees: bool) -> list[str]:
    watcher = Watcher(site.agent.pid)
    crowd = Crowd(site.broker.port, 1, asked.tokens)
    try:
        first, second = site.publish(), site.publish()
        installed = _until_active(crowd, site, first)
        one = {"bundle": bytes_in(place / "state" / "bundles"), "derived": bytes_in(place / "state" / "derived")}
        crowd.begin()
        crowd.wait(lambda: any(stream.lasts for stream in crowd.streams.values()), "the first answer")
        swapped = _until_active(crowd, site, second)
        crowd.end()
        longer = [_ask_about_pictures(crowd)] if sees else []
        longer += [_fill_slots(crowd, plan)] if asked.full else []
        both = bytes_in(place / "state" / "bundles") + bytes_in(place / "state" / "derived")
    finally:
        crowd.close()
        found = watcher.stop()
    answers = list(crowd.streams.values())
    lost = sum(len(stream.lasts) != 1 or "error" in stream.lasts[0] for stream in answers)
    speeds = [
        stream.lasts[0]["usage"]["completion_tokens"] / (stream.times[-1] - stream.asked)
        for stream in answers
        if stream.times and stream.lasts and "usage" in stream.lasts[0]
    ]
    last, whole = crowd.swaps[-1], one["bundle"] + one["derived"]
    rows = [
        f"on a device of {asked.limit:g} GiB without swap"
        + ("" if group is not None else " (no limit was set: that needs root)"),
        "",
        "| process | most anonymous memory, GiB | seconds |",
        "|---|---|---|",
        *(
            f"| {name} | {peak / GIB:.2f} | {found.seconds[name]:.0f} |"
            for name, peak in sorted(found.peaks.items(), key=lambda item: -item[1])
        ),
        f"| **together** | **{found.together / GIB:.2f}** | |",
        "",
        f"planned: weights {plan.footprint.weights / GIB:.2f} GiB, {plan.kv.slots} × {plan.kv.length} tokens in "
        f"{plan.footprint.kv_type}, prepacked {'yes' if plan.prepacked else 'no'}, the next version: {plan.swap}",
        f"disk {whole / 1e9:.3f} GB with one version ({one['derived'] / 1e9:.3f} of it derived, "
        f"{whole / one['bundle']:.2f} times the bundle), {both / 1e9:.3f} GB with two",
        f"installed in {installed:.0f} s, swapped in {swapped:.0f} s ({last['mode']}, requests waited "
        f"{last['queue_pause_ms'] / 1000:.1f} s); {len(answers)} answers, {lost} lost",
        f"{statistics.median(speeds or [0.0]):.1f} tokens/s, prompt and all"
        + ("" if group is None else f"; killed for memory: {killed_for_memory(group)}"),
        *longer,
    ]
    return rows


def _ask_about_pictures(crowd: Crowd) -> str:
    """Seconds to the first token of an answer about a picture, about the same again, and about it at a glance."""
    picture = encode_png(draw("stripes", PICTURE_SIDE))
    took = []
    for name in ("first", "again"):
        stream = crowd.show(name, picture, "What is in this picture?", LONG_TOKENS)
        last = stream.lasts[0]
        if "error" in last:
            return f"a picture: {last['error']['message']}"
        took.append(stream.times[0] - stream.asked)
    tokens = stream.lasts[0]["usage"]["prompt_tokens"]
    return (
        f"a picture of {PICTURE_SIDE} x {PICTURE_SIDE} pixels and a question, {tokens} tokens: {took[0]:.1f} s to the "
        f"first token, {took[1]:.1f} s when asked again"
    )


def _fill_slots(crowd: Crowd, plan: DevicePlan) -> str:
    """As many prompts at once as there are slots, each of another text and nearly as long as a slot."""
    length = plan.kv.length - LONG_TOKENS - TEMPLATE_TOKENS
    started = time.perf_counter()
    answers = crowd.ask_together(
        {f"full{number}": letters_of(length, number) for number in range(plan.kv.slots)}, LONG_TOKENS
    )
    took = time.perf_counter() - started
    failed = [stream.lasts[0]["error"]["message"] for stream in answers if "error" in stream.lasts[0]]
    if failed:
        return f"{plan.kv.slots} prompts of {length} tokens at once: {failed[0]}"
    read = [stream.lasts[0]["usage"]["prompt_tokens"] for stream in answers]
    return (
        f"{len(read)} prompts of {min(read)} to {max(read)} tokens at once, all answered after {took:.0f} s, "
        f"{sum(read) / took:.0f} tokens read a second"
    )


def _until_active(crowd: Crowd, site: Site, version: str) -> float:
    """Seconds from the wish until it is active and out of its probation."""
    started = time.monotonic()
    crowd.desire(site.name, version)
    crowd.wait(lambda: crowd.runs(version), version)
    return time.monotonic() - started
