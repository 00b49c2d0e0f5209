"""The tables of ``state.db``; each module describes its own."""

from __future__ import annotations

from agent.state.history import HISTORY
from agent.state.installation import INSTALLATION
from agent.state.integrity import SET_ASIDE
from agent.state.result_store import ANSWERS
from agent.state.warnings import WARNINGS

SCHEMA = ";\n".join((INSTALLATION, ANSWERS, WARNINGS, HISTORY, SET_ASIDE))
