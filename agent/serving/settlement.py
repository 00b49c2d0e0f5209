"""The seam between taking a message from the broker and settling it: whatever is raised there ends here.

Acknowledgements go out in the order of arrival, and a broker sends no more than a window of messages ahead of them. So
one message that is never acknowledged ends all hearing, and it comes again after every reconnect and every restart.
Each step on the way, in the event loop's callbacks too, therefore runs under the :class:`Settlement` of its message:
what it raises is logged with its traceback, answered 500 ``internal_error`` on the message's id, and acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec

from agent.serving.requests import INTERNAL_ERROR, Refusal

log = logging.getLogger("edge_agent.mqtt")

P = ParamSpec("P")

FAULT = Refusal(500, INTERNAL_ERROR, "the device failed at this message; its log says why")


class Settlement:
    """Of one message: ``acknowledge`` acknowledges it to the broker, ``answer`` sends its sender an error; each is
    called once at most.
    """

    def __init__(self, acknowledge: Callable[[], None], answer: Callable[[], None]) -> None:
        self._acknowledge = acknowledge
        self._answer = answer
        self._settled = False
        self._failed = False

    def settle(self) -> None:
        """The message is dealt with."""
        if self._settled:
            return
        self._settled = True
        try:
            self._acknowledge()
        except Exception:
            # It was dealt with all the same: its sender must get nothing else now.
            log.exception("a message could not be acknowledged")

    def guarded(self, step: Callable[P, None], on_failure: Callable[[], None] | None = None) -> Callable[P, None]:
        """``step``, which raises nothing; should it fail, ``on_failure`` is called in place of ``answer``."""

        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                step(*args, **kwargs)
            # A future that was cancelled raises CancelledError when it is asked; a callback is no task to be cancelled.
            except (Exception, asyncio.CancelledError):
                self.fail(on_failure)

        return run

    def fail(self, on_failure: Callable[[], None] | None = None) -> None:
        """Deal with the exception that is being handled."""
        log.exception("a message could not be handled: it is answered 500 and acknowledged")
        for answer in [] if self._failed else [on_failure, self._answer]:
            try:
                if answer is not None:
                    answer()
                    break
            except Exception:
                log.exception("the error could not be sent to the sender of the message")
        self._failed = True
        self.settle()
