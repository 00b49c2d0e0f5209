"""One line of the doctor's page."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from contract.errors import EdgeBundleError

Verdict = Literal["ok", "bad", "warning", "note"]
SIGNS: dict[Verdict, str] = {"ok": "✓", "bad": "✗", "warning": "!", "note": "·"}


class Finding(Struct, frozen=True):
    """``warning``: prompts are answered all the same; ``note``: neither good nor bad, or not to be found out here.
    ``fix`` says what to do about it.
    """

    check: str
    verdict: Verdict
    detail: str
    fix: str = ""


def run_check(check: str, inspect: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """Whatever goes wrong while looking is what was found."""
    try:
        found = inspect()
    except EdgeBundleError as error:
        return [Finding(check, "bad", error.message)]
    except subprocess.TimeoutExpired as error:
        text = f"cannot be determined: {error.cmd[0]} does not answer within {error.timeout:.0f} s"
        return [Finding(check, "bad", text, "look whether something takes all of this machine's cores or its disk")]
    except OSError as error:
        return [Finding(check, "bad", f"cannot be determined: {error}", "run this as root or as the agent's account")]
    return found if isinstance(found, list) else [found]
