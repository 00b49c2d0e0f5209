"""``make see``: a tiny model of each family that sees, from checkpoint to answers about pictures over MQTT.

Built by ``edge-packager build``, published, deployed to an agent at a broker, canary and all, asked about pictures that
are drawn by code; then every token of the answers is held against the family's reference, which reads the same
checkpoint with transformers. Exit status 0 only if all of it held.

    python -m tests.e2e.see [FAMILY …]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.mqtt.pictures import picture_digest, picture_url, split_picture
from contract.system.command_line import main as run_command
from packager.cli import COMMANDS
from packager.evaluate.ends import find_ends
from packager.evaluate.layerwise import in_fp32
from packager.sources.checkpoint import digest_directory
from packager.sources.opening import SourceOptions, convert_directory
from packager.vision.families import FAMILIES
from packager.vision.family import Prepared, VisionSource
from packager.vision.pictures import draw, encode_png
from packager.vision.source_process import write_prompt
from tests.e2e.narrator import Narrator, Teller
from tests.e2e.raw_client import Answer, RawClient
from tests.e2e.sight import ANSWER_TOKENS, CASES, TINY, Case, Seen, Served, faults, table
from tests.e2e.story import Story, StoryFailed
from tests.forked import forked_children

Numbers = npt.NDArray[np.float64]


INLINE_BYTES = 700_000
"""Larger pictures are sent in parts before their request."""


class SightStory(Story):
    """Its builds are the command's own, in this process, and fork their children: three builds would load torch and
    transformers twenty times.
    """

    def packager(self, *arguments: str) -> str:
        if arguments[0] != "build":
            return super().packager(*arguments)
        self.tell.say(f"$ edge-packager {' '.join(arguments)}")
        said = io.StringIO()
        with forked_children(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = run_command("edge-packager", "", COMMANDS, arguments)
        if status:
            raise StoryFailed(f"edge-packager {' '.join(arguments)} ended with {status}: {said.getvalue()}")
        return said.getvalue()


def see(name: str, home: Path, cache: Path, teller: Narrator) -> Served:
    """The whole way of one family.

    Raises:
        StoryFailed: something of it did not hold.
    """
    tiny = TINY[name]
    checkpoint = home / "checkpoint"
    getattr(importlib.import_module(tiny.module), tiny.make)(checkpoint)
    side = tiny.side or FAMILIES[tiny.architecture].side(checkpoint)
    story = SightStory(home, cache, teller, name=name, model=checkpoint)
    try:
        bundle = story.build("1.0.0", "--precision", "fp32")
        story.create_repository()
        story.publish(bundle)
        story.start_broker()
        story.start_agent()
        _, report = story.deploy_first()
        if report["error"] is not None:
            raise StoryFailed(f"{name} is not active: {report['error']}")
        told = [_ask(story, f"see-{number}", case, side) for number, case in enumerate(CASES)]
        low = _ask(story, "low", CASES[0], side, "low")
        engine, doctor = _info(story)["engine"], _doctor(story)
    finally:
        story.close()
    answers = _compare(checkpoint, told, side, home, cache)
    return Served(tiny, engine["engine"], engine["why"], doctor, answers, low["usage"]["prompt_tokens"])


def _info(story: Story) -> dict[str, Any]:
    """What the device retains of itself."""
    newcomer = RawClient(story.broker_port, f"newcomer-{os.getpid()}", story.device, story.broker_host)
    try:
        return newcomer.next_device_message("info")
    finally:
        newcomer.close()


def _doctor(story: Story) -> str:
    """The engine that ``edge-agent doctor`` names."""
    lines = (line.split() for line in story.on_device("doctor").splitlines())
    return next((words[2].rstrip(",") for words in lines if words[1:2] == ["engine"]), "")


def _ask(story: Story, request: str, case: Case, side: int, detail: str = "auto") -> dict[str, Any]:
    """The last frame of an answer over MQTT, and in how many ``parts`` the picture was sent."""
    client, picture = story.client, encode_png(draw(case.picture, side))
    parts = split_picture(picture) if len(picture) > INLINE_BYTES else []
    for part, piece in parts:
        client.publish(f"edge/v1/d/{story.device}/picture/{client.name}/{part.digest}/{part.level}", piece)
    url = f"sha256:{picture_digest(picture)}" if parts else picture_url(picture)
    image = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
    content = [image, {"type": "text", "text": f"\n{case.question}"}]
    body = {
        "id": request, "messages": [{"role": "user", "content": content}], "logprobs": True,
        "max_tokens": ANSWER_TOKENS, "min_tokens": ANSWER_TOKENS, "stream": False,
    }  # fmt: skip
    client.answers[request] = Answer(time.monotonic())
    client.publish(f"edge/v1/d/{story.device}/generate/{client.name}", json.dumps(body).encode())
    last = client.wait_answer(request, 300).lasts[0]
    if "error" in last:
        raise StoryFailed(f"no answer about {case.picture}: {last['error']}")
    return {**last, "parts": len(parts)}


def _compare(checkpoint: Path, told: Sequence[dict[str, Any]], side: int, home: Path, cache: Path) -> list[Seen]:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    digest = digest_directory(checkpoint)  # which finds what the build made
    text = convert_directory(checkpoint, digest, cache, home / "log", SourceOptions(text_only=True)).path
    architecture = json.loads((checkpoint / "config.json").read_text())["architectures"][0]
    family, tokenizer = FAMILIES[architecture], AutoTokenizer.from_pretrained(text)
    source, ends = family.open_source(checkpoint, text), find_ends(text, tokenizer)
    prepared = {name: family.prepare(checkpoint, draw(name, side)) for name in ("shapes", "stripes")}
    found = []
    for case, last in zip(CASES, told, strict=True):
        prompt = write_prompt(tokenizer, case.question, prepared[case.picture])
        answer = [entry["id"] for entry in last["logprobs"]]
        said = np.array([entry["logprob"] for entry in last["logprobs"]])
        same, best = _score(source, prompt, prepared[case.picture], answer, ends)
        another, _ = _score(source, prompt, prepared[case.other], answer, ends)
        found.append(
            Seen(
                case.picture,
                last["parts"],
                last["usage"]["prompt_tokens"],
                len(prompt),
                prepared[case.picture].features,
                last["usage"]["cached_tokens"],
                answer,
                float(np.abs(said - same).max()),
                float(np.abs(said - another).max()),
                float((best - same).max()),
                last["timing"]["first_token_ms"] / 1000,
            )
        )
    return found


def _score(
    source: VisionSource, prompt: list[int], prepared: Prepared, answer: Sequence[int], ends: Sequence[int]
) -> tuple[Numbers, Numbers]:
    """The log-probability that the reference gives each token of ``answer``, and the one that it likes best there, none
    of ``ends``: an answer of so many tokens was asked for.
    """
    import torch

    scores, best = [], []
    with torch.inference_mode():
        model, given = source.prompt(prompt, prepared.inputs)
        with in_fp32(model):
            output = model(**given, use_cache=True)
            for token in answer:
                row = torch.log_softmax(output.logits[0, -1].float(), -1).numpy().astype(np.float64)
                scores.append(row[token])
                best.append(np.delete(row, list(ends)).max())
                past = output.past_key_values
                output = model(input_ids=torch.tensor([[token]]), past_key_values=past, use_cache=True)
    return np.array(scores), np.array(best)


def main(arguments: Sequence[str] | None = None) -> int:
    """See with every family, or with those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", metavar="FAMILY", help=f"of {', '.join(TINY)} (all of them)")
    names = parser.parse_args(arguments).family or list(TINY)
    if unknown := [name for name in names if name not in TINY]:
        parser.error(f"{unknown[0]} is none of {', '.join(TINY)}")
    teller, cache = Teller(), Path(os.environ.get("EDGE_CACHE", ".cache")).resolve()
    wrong: list[str] = []
    rows: list[tuple[str, Served]] = []
    for number, name in enumerate(names, 1):
        teller.chapter(number, name)
        with tempfile.TemporaryDirectory(prefix="edge-bundle-see-", ignore_cleanup_errors=True) as home:
            try:
                served = see(name, Path(home), cache, teller)
            except (StoryFailed, TimeoutError) as failed:
                wrong.append(f"{name}: {failed}")
                continue
        wrong += [f"{name}: {fault}" for fault in faults(served)]
        rows.append((name, served))
    print(f"\n{table(rows)}")
    for fault in wrong:
        print(fault, file=sys.stderr)
    print("Something did not hold." if wrong else "All of it held.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
