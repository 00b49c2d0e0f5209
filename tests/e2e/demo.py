"""``make demo``: the story, told to a person. Exit status 0 only if all of it held."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.e2e.narrator import Teller
from tests.e2e.story import NAME, Story, StoryFailed


def main() -> int:
    """Tell it in a temporary directory; what was started is stopped at the end, also on Ctrl-C and SIGTERM."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    teller = Teller()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edge-bundle-demo-", ignore_cleanup_errors=True) as home:
        story = Story(Path(home), Path(os.environ.get("EDGE_CACHE", ".cache")).resolve(), teller)
        try:
            _tell(story, teller)
        except (StoryFailed, TimeoutError) as failed:
            print(f"\nThe demo failed: {failed}", file=sys.stderr)
            log = Path(home) / "agent.log"
            if log.exists():
                print("--- the agent's last lines", *log.read_text().splitlines()[-25:], sep="\n", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted; stopping what was started.", file=sys.stderr)
            return 130
        finally:
            story.close()
    teller.say("")
    teller.say(f"All of it held, in {time.monotonic() - started:.0f} seconds. Everything that was started is stopped.")
    return 0


def _hold(condition: bool, promise: str) -> None:
    if not condition:
        raise StoryFailed(promise)


def _tell(story: Story, teller: Teller) -> None:
    teller.chapter(1, "Build a bundle, prove it, sign it")
    first = story.build("1.0.0")
    manifest = json.loads((first / "manifest.json").read_bytes())
    canary = json.loads((first / "evidence" / "quality.json").read_bytes())["canaries"][0]
    teller.say(f"asked {canary['prompt']!r}")
    teller.say(f"  the source answers {canary['source'].strip()!r}")
    teller.say(f"  the bundle answers {manifest['canary'][0]['expected_text'].strip()!r}")
    story.create_repository()
    story.publish(first)

    teller.chapter(2, "Start a broker and an agent")
    story.start_broker()
    story.start_agent()

    teller.chapter(3, "Deploy 1.0.0 through the desired topic")
    phases, report = story.deploy_first()
    _hold(report["error"] is None and (report["active"] or {}).get("version") == "1.0.0", f"not active: {report}")
    _hold({"FETCH", "SEAL", "CANARY", "SWITCH"} <= set(phases), f"phases are missing: {phases}")

    teller.chapter(4, "Ask it over MQTT")
    answer = story.ask_capital()
    _hold("Paris" in answer.text, f"the answer was {answer.lasts}")
    last = answer.lasts[0]
    teller.say(f"{last['usage']['completion_tokens']} tokens from {last['bundle']}, "
               f"the first after {last['timing']['first_token_ms']:.0f} ms")  # fmt: skip

    teller.chapter(5, "Deploy 1.1.0, rounded to nearest in finer blocks, while questions keep coming")
    second = story.build("1.1.0", "--quantizer", "rtn", "--block-size", "16")
    story.publish(second)
    swap = story.swap_under_load()
    teller.say(f"{swap.asked} questions, {swap.lost} lost, {swap.duplicated} answered twice, {swap.failed} failed")
    held = "" if swap.queue_pause_ms is None else f"; requests waited {swap.queue_pause_ms:.0f} ms"
    teller.say(f"longest wait {swap.longest_wait_seconds:.1f} s{held}; answered by {' and '.join(swap.bundles)}")
    _hold(not (swap.lost or swap.duplicated or swap.failed), "an answer was lost, doubled or failed")
    _hold(set(swap.bundles) == {f"{NAME}@1.0.0", f"{NAME}@1.1.0"}, f"only {swap.bundles} answered")

    teller.chapter(6, "What the device reports; what it refuses")
    sample = story.telemetry()
    shown = ("queue", "active", "requests", "swaps", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    teller.say("telemetry/llm " + json.dumps({key: sample[key] for key in shown}))
    third = story.pack("1.2.0", second)
    story.publish(third)
    changed = story.corrupt(third)
    teller.say(f"flipped one bit of objects/{changed.name[:12]}… and deployed 1.2.0")
    refusal = story.refuse_corrupted()
    teller.say(f"refused: {refusal.message} [{refusal.reason}]")
    teller.say(f"meanwhile {refusal.still_active} answered: {refusal.answer.strip()}")
    _hold(refusal.reason == "digest_mismatch", f"refused for another reason: {refusal.reason}")
    _hold(refusal.still_active == f"{NAME}@1.1.0" and "Paris" in refusal.answer, "the old bundle did not go on")


if __name__ == "__main__":
    sys.exit(main())
