"""The scheduler's input and output: an event for all that happens, a command for every effect. Pure."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from agent.engine.interface import FinishEvent, RejectEvent
from agent.serving.active_request import ActiveRequest, EarlyEnd
from agent.serving.requests import Refusal
from agent.serving.slots import Slots

# -- events: of requests -----------------------------------------------------------------------------------------------


class RequestAccepted(Struct, frozen=True):
    """It is stored, and ours from now on."""

    request: ActiveRequest


class RequestRecovered(Struct, frozen=True):
    """An earlier run of the agent accepted it; it is run again unless ``refusal`` gives a reason why it cannot be."""

    request: ActiveRequest
    refusal: Refusal | None


class CancelRequested(Struct, frozen=True):
    request: ActiveRequest


class UpdateRequested(Struct, frozen=True):
    """``changes`` are what :func:`agent.serving.requests.read_changes` gave."""

    request: ActiveRequest
    changes: dict[str, Any]


class RequestFailed(Struct, frozen=True):
    """Something of ours failed at it: it ends, wherever it is."""

    request: ActiveRequest
    refusal: Refusal


class ResultStored(Struct, frozen=True):
    request: ActiveRequest


class TimePassed(Struct, frozen=True):
    """A deadline may have come."""


# -- events: of replicas -----------------------------------------------------------------------------------------------


class ReplicaReady(Struct, frozen=True):
    """A worker is loaded, and advances ``capacity`` requests at once."""

    slots: Slots
    capacity: int


class ReplicaLost(Struct, frozen=True):
    """Its worker ended, or (``load_failed``) no new one could be loaded; ``why`` in words."""

    slots: Slots
    why: str
    load_failed: bool = False


class ReplicaUnloading(Struct, frozen=True):
    """It was idle for long enough, and its worker is being ended."""

    slots: Slots


class ReplicaUnloaded(Struct, frozen=True):
    """Its worker is gone, and its memory is free."""

    slots: Slots


class ReplicaClosed(Struct, frozen=True):
    """It takes nothing any more."""

    slots: Slots


class RunEnded(Struct, frozen=True):
    """A worker finished a request, or rejects it."""

    slots: Slots
    event: FinishEvent | RejectEvent


# -- events: of the switchover -----------------------------------------------------------------------------------------


class Paused(Struct, frozen=True):
    """New requests wait from now on: no replica may take any."""


class Switched(Struct, frozen=True):
    """``current`` takes new requests from now on, with another model; ``draining`` only finishes what it runs."""

    current: Slots
    draining: Slots | None = None


class Resumed(Struct, frozen=True):
    """The pause is over and the model is the one from before, if there was any."""

    current: Slots | None


class Stopped(Struct, frozen=True):
    """No replica takes new requests any more."""

    draining: Slots | None


class DrainTimedOut(Struct, frozen=True):
    """What still runs there has to run elsewhere."""

    slots: Slots


class DrainEnded(Struct, frozen=True):
    slots: Slots


# -- events: of the device ---------------------------------------------------------------------------------------------


class StartupFinished(Struct, frozen=True):
    """Without a model, requests are rejected from now on."""


class ShutdownBegun(Struct, frozen=True):
    """Nothing is started any more, nor rejected for want of a model: what waits is for the next start."""


class ModelUnavailable(Struct, frozen=True):
    """A bundle is active and cannot be loaded for now."""


class ConcurrencyLimited(Struct, frozen=True):
    """At most so many answers at once (None: as many as there are slots); running ones go on."""

    most: int | None


RequestEvent = (
    RequestAccepted | RequestRecovered | CancelRequested | UpdateRequested | RequestFailed | ResultStored
)  # fmt: skip
ReplicaEvent = ReplicaReady | ReplicaLost | ReplicaUnloading | ReplicaUnloaded | ReplicaClosed
RouteEvent = Paused | Switched | Resumed | Stopped | DrainTimedOut | DrainEnded
DeviceEvent = StartupFinished | ShutdownBegun | ModelUnavailable | ConcurrencyLimited
Event = RequestEvent | ReplicaEvent | RouteEvent | DeviceEvent | RunEnded | TimePassed

# -- commands ----------------------------------------------------------------------------------------------------------


class Start(Struct, frozen=True):
    """Give the request to the worker of ``slots``."""

    request: ActiveRequest
    slots: Slots


class CancelRun(Struct, frozen=True):
    slots: Slots
    number: int


class UpdateRun(Struct, frozen=True):
    slots: Slots
    number: int
    changes: dict[str, Any]


class LoadModel(Struct, frozen=True):
    """Somebody waits for a replica that was unloaded."""

    slots: Slots


class NoteIdle(Struct, frozen=True):
    """Nothing runs there any more."""

    slots: Slots


class Finish(Struct, frozen=True):
    """Store and send the answer."""

    request: ActiveRequest
    event: FinishEvent


class EndEarly(Struct, frozen=True):
    """Store and send what there is of an answer that was cancelled or whose deadline has come."""

    request: ActiveRequest
    reason: EarlyEnd


class Fail(Struct, frozen=True):
    """Store and send an error."""

    request: ActiveRequest
    refusal: Refusal


class SendPosition(Struct, frozen=True):
    """Tell a request that has to wait how many are before it."""

    request: ActiveRequest


class ReportFault(Struct, frozen=True):
    """Something of ours failed at one request; it ends with that, and the others go on."""

    request: ActiveRequest
    error: Exception


class LogLost(Struct, frozen=True):
    request: ActiveRequest


class CountCrash(Struct, frozen=True):
    pass


class CountRestart(Struct, frozen=True):
    pass


class ReportHealth(Struct, frozen=True):
    """Whether requests are answered may have changed."""


RunCommand = Start | CancelRun | UpdateRun | LoadModel | NoteIdle
EndCommand = Finish | EndEarly | Fail
Report = SendPosition | ReportFault | LogLost | CountCrash | CountRestart | ReportHealth
Command = RunCommand | EndCommand | Report
