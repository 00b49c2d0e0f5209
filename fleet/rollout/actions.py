"""What may be done to a rollout, as data; :class:`Turn` does it, and refuses what no table allows."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, structs

from contract.windows import Window
from fleet.rollout.facts import Facts
from fleet.rollout.model import Bundle, Rollout, Target, Wave
from fleet.rollout.states import ROLLOUT, TARGET, WAVE, RolloutState, TargetState, WaveState


class MoveRollout(Struct, frozen=True):
    """``changes``: further fields of the record."""

    to: RolloutState
    reason: str = ""
    changes: dict[str, Any] = {}


class MoveWave(Struct, frozen=True):
    number: int
    to: WaveState
    verdict: str = ""
    changes: dict[str, Any] = {}


class AddWave(Struct, frozen=True):
    """Late devices, as a further wave."""

    targets: tuple[Target, ...]


class MoveTarget(Struct, frozen=True):
    device: str
    to: TargetState
    reason: str = ""
    message: str = ""
    changes: dict[str, Any] = {}


class NoteTarget(Struct, frozen=True):
    """Fields of a target change, not its state."""

    device: str
    changes: dict[str, Any]


class Publish(Struct, frozen=True):
    """The retained wish for a device; without ``bundle`` the wish is withdrawn. With ``windows`` the device fetches at
    once and activates within them.
    """

    device: str
    revision: str
    bundle: Bundle | None
    source: str | None = None
    windows: tuple[Window, ...] = ()


class TakeSlot(Struct, frozen=True):
    site: str
    device: str
    expires: float


class FreeSlot(Struct, frozen=True):
    site: str
    device: str


Action = MoveRollout | MoveWave | AddWave | MoveTarget | NoteTarget | Publish | TakeSlot | FreeSlot


class IllegalMove(Exception):
    """A state that may not follow: a fault of ours. Nothing was changed."""


class Turn:
    """A rollout while it is decided upon: every change goes through :meth:`do`, which notes it in ``actions``."""

    def __init__(self, rollout: Rollout, facts: Facts, now: float) -> None:
        self.rollout = structs.replace(rollout, targets=dict(rollout.targets))
        self.facts = facts
        self.now = now
        self.actions: list[Action] = []
        self.slots = {
            site: {device: expires for device, expires in holders.items() if expires > now}
            for site, holders in facts.slots.items()
        }

    def do(self, action: Action) -> None:
        """Carry ``action`` out.

        Raises:
            IllegalMove: the tables do not allow it.
        """
        match action:
            case MoveRollout():
                self._move_rollout(action)
            case MoveWave():
                self._move_wave(action)
            case MoveTarget():
                self._move_target(action)
            case NoteTarget(device, changes):
                self.rollout.targets[device] = structs.replace(self.rollout.targets[device], **changes)
            case AddWave(targets):
                waves = (*self.rollout.waves, Wave(targets[0].wave))
                self.rollout = structs.replace(self.rollout, waves=waves)
                self.rollout.targets.update({target.device: target for target in targets})
            case TakeSlot(site, device, expires):
                self.slots.setdefault(site, {})[device] = expires
            case FreeSlot(site, device):
                self.slots.get(site, {}).pop(device, None)
            case Publish():
                pass
        self.actions.append(action)

    def _move_rollout(self, action: MoveRollout) -> None:
        if action.to not in ROLLOUT[self.rollout.state]:
            raise IllegalMove(f"rollout {self.rollout.id}: {self.rollout.state} to {action.to}")
        self.rollout = structs.replace(self.rollout, state=action.to, reason=action.reason, **action.changes)

    def _move_wave(self, action: MoveWave) -> None:
        wave = self.wave(action.number)
        if action.to not in WAVE[wave.state]:
            raise IllegalMove(f"wave {action.number} of rollout {self.rollout.id}: {wave.state} to {action.to}")
        moved = structs.replace(wave, state=action.to, verdict=action.verdict, **action.changes)
        waves = tuple(moved if each.number == moved.number else each for each in self.rollout.waves)
        self.rollout = structs.replace(self.rollout, waves=waves)

    def _move_target(self, action: MoveTarget) -> None:
        target = self.rollout.targets[action.device]
        if action.to not in TARGET[target.state]:
            raise IllegalMove(f"{action.device} in rollout {self.rollout.id}: {target.state} to {action.to}")
        self.rollout.targets[action.device] = structs.replace(
            target, state=action.to, reason=action.reason, message=action.message, **action.changes
        )

    def wave(self, number: int) -> Wave:
        return next(each for each in self.rollout.waves if each.number == number)

    def targets(self) -> list[Target]:
        """As they are now, in the order in which they were stored."""
        return list(self.rollout.targets.values())


def apply(rollout: Rollout, actions: list[Action], facts: Facts | None = None) -> Rollout:
    """The rollout after ``actions``.

    Raises:
        IllegalMove: the tables do not allow one of them.
    """
    turn = Turn(rollout, facts or Facts(), 0.0)
    for action in actions:
        turn.do(action)
    return turn.rollout
