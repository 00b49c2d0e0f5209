"""``make fleet-demo``: a fleet of three devices, told to a person. Exit status 0 only if all of it held."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import FrameType

from fleet.rollout.states import RolloutState
from tests.e2e.fleet_story import BOXES, NAME, FleetStory, bundle_of_environment
from tests.e2e.narrator import Narrator, Teller
from tests.e2e.story import StoryFailed

LONGEST_SECONDS = 1500
"""After this it is ended, whatever it does."""


def main() -> int:
    """Tell it in a temporary directory; what was started is stopped at the end, also on Ctrl-C and SIGTERM."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_SECONDS)
    teller = Teller()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edge-fleet-demo-", ignore_cleanup_errors=True) as home:
        cache = Path(os.environ.get("EDGE_CACHE", ".cache")).resolve()
        story = FleetStory(Path(home), cache, teller, bundle=bundle_of_environment())
        try:
            took = tell(story, teller)
        except (StoryFailed, TimeoutError) as failed:
            print(f"\nThe demo failed: {failed}\n{story.log_tail()}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted; stopping what was started.", file=sys.stderr)
            return 130
        finally:
            story.close()
    teller.say("")
    chapters = ", ".join(f"{number}: {seconds:.0f}" for number, seconds in enumerate(took, start=1))
    teller.say(f"All of it held, in {time.monotonic() - started:.0f} seconds ({chapters}).")
    teller.say("Everything that was started is stopped.")
    return 0


def _hold(condition: bool, promise: str) -> None:
    if not condition:
        raise StoryFailed(promise)


def tell(story: FleetStory, teller: Narrator) -> list[float]:
    """The whole of it; how many seconds each chapter took.

    Raises:
        StoryFailed: something that it promises did not happen.
    """
    began: list[float] = []

    def chapter(number: int, title: str) -> None:
        began.append(time.monotonic())
        teller.chapter(number, title)

    chapter(1, "Publish three versions: 1.0.0, 1.1.0 as good, 1.2.0 that says the same and is slow")
    story.publish_bundles()

    chapter(2, "Start a broker, a fleet with its gateway, three devices")
    story.start_everything()
    teller.say(f"broker {story.broker.url}, console {story.gateway}/, gateway {story.gateway}/v1")

    chapter(3, "Ask through the gateway with the openai package")
    for model in ("group:boxes", NAME):
        text, bundle = story.ask(model)
        _hold("Paris" in text and bundle == f"{NAME}@1.0.0", f"the answer was {text!r} of {bundle}")

    chapter(4, "Roll out 1.1.0, in waves, while all devices are asked")
    story.keep_asking()
    good = story.roll_out("1.1.0")
    _hold(good.state is RolloutState.DONE, f"the good bundle was not rolled out: {good.reason}")
    _hold(sorted(story.running().values()).count(f"{NAME}@1.1.0") == 2, f"devices run {story.running()}")
    teller.say(f"devices run {story.running()}; one is the control group")

    chapter(5, "Roll out 1.2.0: it is signed, its answers are right, and it is slow")
    slow = story.roll_out("1.2.0")
    _hold(slow.state is RolloutState.ROLLED_BACK, f"the slow bundle was not halted: {slow.state} {slow.reason}")
    _hold("tokens/s" in slow.reason, f"it was halted for another reason: {slow.reason}")
    got = story.got("1.2.0")
    teller.say(f"halted: {slow.reason}")
    teller.say(f"{len(got)} of {len(BOXES)} devices ever ran it: {', '.join(got)}; devices run {story.running()}")
    _hold(len(got) == 1 and f"{NAME}@1.2.0" not in story.running().values(), f"{got} ran the slow bundle")

    chapter(6, "Ask again")
    text, bundle = story.ask(f"{NAME}@1.1.0")
    _hold("Paris" in text and bundle == f"{NAME}@1.1.0", f"the answer was {text!r} of {bundle}")
    story.until(story.healthy, "the gateway to be well")
    teller.say(f"meanwhile the devices gave {sum(story.asked.values())} answers to programs that asked all the time")
    return [end - begin for begin, end in pairwise([*began, time.monotonic()])]


if __name__ == "__main__":
    sys.exit(main())
