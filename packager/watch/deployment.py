"""How far devices are with a desired bundle, from what they report. Pure: nothing is asked, time is handed in."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET

from contract.errors import BundleRefused, SourceUnavailable
from contract.mqtt.reports import PlannedSwap, Reported, Waiting
from contract.reasons import Reason

QUIET_SECONDS = 30.0
"""After so long without news it is said what is waited for."""

HEARD = "answers again"
UNHEARD = "does not answer; what devices do meanwhile is not heard here"


class Following:
    """One device. ``outcome``: None while it is followed, else ``active``, ``refused`` or ``superseded``."""

    def __init__(self, device: str, now: float) -> None:
        self.device = device
        self.before = b""
        self.seen = False
        self.outcome: str | None = None
        self.refusal: tuple[str, str] = ("", "")
        self.retrying = ""
        self.online = True
        self.text = "has not reported on it yet"
        self.spoke = now
        self.since = now


class Deployment:
    """``bundle`` (NAME@VERSION) is wanted of ``devices`` under ``revision``. Every method gives what to print of it."""

    def __init__(self, bundle: str, revision: str, devices: Iterable[str], now: float) -> None:
        self._bundle = bundle
        self._revision = revision
        self._devices = {device: Following(device, now) for device in devices}
        self._unheard: float | None = None

    @property
    def waiting(self) -> list[Following]:
        """Those that are not through."""
        return [each for each in self._devices.values() if each.outcome is None]

    def reported_before(self, device: str, payload: bytes) -> str | None:
        """What ``device`` had reported when it was asked: the same again is no answer, unless it is through with it."""
        found = self._devices.get(device)
        if found is None:
            return None
        found.before = payload
        reported = _read(payload)
        done = reported is not None and reported.phase == "IDLE" and reported.error is None
        if reported is None or not done or not is_active(reported, self._bundle):
            return None
        return self._take(found, reported)

    def status(self, device: str, online: bool, now: float) -> str | None:
        """It went away or came back."""
        found = self._devices.get(device)
        if found is None or found.outcome is not None or found.online == online:
            return None
        found.online, found.spoke = online, now
        return "online again" if online else "offline; it continues when it is back"

    def broker(self, connected: bool, now: float) -> str | None:
        """Whether the broker can be heard now: what devices do while it cannot is not known here."""
        if connected == (self._unheard is None):
            return None
        self._unheard = None if connected else now
        return HEARD if connected else UNHEARD

    def report(self, device: str, payload: bytes, now: float) -> tuple[Reported, str] | None:
        """A report and the line for it; None where it is no news."""
        found = self._devices.get(device)
        if found is None or found.outcome is not None or (not found.seen and payload == found.before):
            return None
        reported = _read(payload)
        text = None if reported is None else self._take(found, reported)
        if reported is None or text is None or text == found.text:
            return None
        found.text, found.spoke, found.since = text, now, now
        return reported, text

    def _take(self, found: Following, reported: Reported) -> str | None:
        if reported.revision != self._revision:
            if not found.seen:
                return None
            found.outcome = "superseded"
            wanted = "nothing" if reported.desired is UNSET else f"{reported.desired.name}@{reported.desired.version}"
            return f"superseded: {wanted} is desired now, by revision {reported.revision}"
        found.seen = True
        found.retrying = ""
        error = reported.error
        if error is not None and error.retry_in_seconds is not UNSET:
            found.retrying = error.message
        elif error is not None and reported.phase == "IDLE":
            found.outcome, found.refusal = "refused", (error.reason, error.message)
        elif reported.phase == "IDLE" and is_active(reported, self._bundle):
            found.outcome = "active"
        return phase_text(reported, self._bundle)

    def reminders(self, now: float) -> list[tuple[str, str]]:
        """Device and line for those of whom nothing was heard for a while."""
        lines = []
        for each in self.waiting:
            if now - each.spoke >= QUIET_SECONDS:
                each.spoke = now
                state = "" if each.online else "offline; "
                if self._unheard is None:
                    text = f"{state}{each.text}, for {now - each.since:.0f} s"
                else:
                    text = (
                        f"the broker does not answer, for {now - self._unheard:.0f} s; last heard: {state}{each.text}"
                    )
                lines.append((each.device, text))
        return lines

    def conclude(self, timeout: float, offline: Iterable[str]) -> None:
        """Nothing is waited for any more; ``offline`` are those that were not followed.

        Raises:
            BundleRefused: a device refused it. SourceUnavailable: it is not active everywhere, and may become so.
        """
        refused = [each for each in self._devices.values() if each.outcome == "refused"]
        if refused:
            reason, text = refused[0].refusal
            known = Reason(reason) if reason in set(Reason) else Reason.DESIRED_INVALID
            more = f" (and {len(refused) - 1} more devices)" if len(refused) > 1 else ""
            raise BundleRefused(known, f"{refused[0].device} refused it: {text}{more}")
        faults = [f"{each.device}: {each.text}" for each in self._devices.values() if each.outcome == "superseded"]
        faults += [f"{each.device}: {self._unfinished(each, timeout)}" for each in self.waiting]
        faults += [f"{device} is offline and follows when it is back" for device in offline]
        if faults:
            raise SourceUnavailable(f"{self._bundle} is not active everywhere: {'; '.join(faults)}")

    def _unfinished(self, each: Following, timeout: float) -> str:
        state = "" if each.online else "offline, "
        if self._unheard is not None:
            state = f"the broker does not answer; last heard: {state}"
        doing = f"it tries again: {each.retrying}" if each.retrying else each.text
        return f"{state}not done within {timeout:.0f} s, {doing}"


def _read(payload: bytes) -> Reported | None:
    try:
        return msgspec.json.decode(payload, type=Reported)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def is_active(reported: Reported, bundle: str) -> bool:
    """Whether ``bundle`` serves, as the model or as an adapter of it."""
    in_force = [reported.active, *(reported.adapters or [])]
    return any(each is not None and f"{each.name}@{each.version}" == bundle for each in in_force)


def phase_text(reported: Reported, bundle: str) -> str:
    """What the device does about ``bundle``, for people."""
    text = reported.phase.lower()
    error = reported.error
    if error is not None and error.retry_in_seconds is not UNSET and reported.phase == "IDLE":
        return f"waiting: {error.message} [{error.reason}]"
    if reported.waiting is not UNSET and reported.phase == "IDLE":
        return waiting_text(reported.waiting)
    if reported.phase == "IDLE":
        if error is not None:
            return f"failed: {error.message} [{error.reason}]"
        if is_active(reported, bundle):
            return f"active {bundle}"
        active = reported.active
        return "nothing is active yet" if active is None else f"{active.name}@{active.version} is still active"
    if reported.progress is not None and reported.progress.total and reported.phase == "FETCH":
        # In steps of ten, so that a log does not drown.
        text += f" {100 * reported.progress.done // reported.progress.total // 10 * 10} %"
    if reported.swap is not UNSET and reported.phase in ("CHECK", "CANARY"):  # before it travels, and before it is done
        text += f" ({swap_text(reported.swap)})"
    if reported.queue_pause_ms is not UNSET and reported.phase in ("PROBATION", "COMMIT"):
        text += f" (requests waited {reported.queue_pause_ms:.0f} ms)"
    return text


def waiting_text(waiting: Waiting) -> str:
    """What a bundle waits for, for people."""
    here = "fetched and verified" if waiting.prefetched else "not fetched yet"
    return f"waiting ({here}): {waiting.message}"


def swap_text(swap: PlannedSwap) -> str:
    """What a swap will mean for whoever asks the device, for people."""
    if swap.mode == "overlap":
        return "requests will not wait"
    doing = "for its trial and its load" if swap.mode == "aside" else "for its load"
    return f"requests will wait {doing}, {swap.pause_seconds:.0f} s at most: {swap.why}"
