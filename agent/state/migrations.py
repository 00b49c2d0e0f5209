"""Every migration of ``state.db``, in the order in which they are applied.

A released migration is never changed and never moved: new ones go to the end, whichever module they belong to.
"""

from __future__ import annotations

from agent.state.history import HISTORY_1
from agent.state.installation import INSTALLATION_1, INSTALLATION_2, INSTALLATION_3
from agent.state.integrity import INTEGRITY_1
from agent.state.result_store import ANSWERS_1
from agent.state.warnings import STANDING_1, STANDING_2

MIGRATIONS: tuple[str, ...] = (
    INSTALLATION_1,
    ANSWERS_1,
    STANDING_1,
    INSTALLATION_2,
    INSTALLATION_3,
    HISTORY_1,
    STANDING_2,
    INTEGRITY_1,
)
