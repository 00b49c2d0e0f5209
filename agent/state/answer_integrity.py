"""Rows of stored answers that cannot be what we wrote: set aside, and their senders told where they are known."""

from __future__ import annotations

import sqlite3

from msgspec import Struct

from agent.state.integrity import MAX_KEPT, note, rows_of
from contract.identifiers import is_identifier

ANSWERS_FIT = (
    "typeof(client) = 'text' AND length(client) BETWEEN 1 AND 64 AND client NOT GLOB '*[^A-Za-z0-9_.-]*' "
    "AND length(CAST(client AS BLOB)) = length(client) "
    "AND typeof(id) = 'text' AND length(id) BETWEEN 1 AND 64 AND id NOT GLOB '*[^A-Za-z0-9_.-]*' "
    "AND length(CAST(id AS BLOB)) = length(id) "
    "AND typeof(fingerprint) = 'text' AND length(CAST(fingerprint AS BLOB)) = length(fingerprint) "
    "AND length(fingerprint) BETWEEN 1 AND 128 AND fingerprint NOT GLOB '*[^0-9A-Za-z]*' "
    "AND typeof(state) = 'integer' AND state BETWEEN 0 AND 4 "
    "AND typeof(attempt) = 'integer' AND attempt BETWEEN 1 AND 1000000 "
    "AND typeof(accepted_at) IN ('real', 'integer') AND accepted_at BETWEEN 0 AND 253402300799 "
    "AND (deadline_at IS NULL OR typeof(deadline_at) IN ('real', 'integer') AND deadline_at BETWEEN 0 AND 1e15) "
    "AND typeof(changed_at) IN ('real', 'integer') AND changed_at BETWEEN 0 AND 253402300799 "
    "AND (correlation IS NULL OR typeof(correlation) = 'blob' AND length(correlation) <= 65535) "
    "AND (request IS NULL OR typeof(request) = 'blob' AND length(request) <= 1048576) "
    "AND (last IS NULL OR typeof(last) = 'blob' AND length(last) <= 16777216) "
    "AND typeof(delivered) = 'integer' AND delivered BETWEEN 0 AND 1"
)
"""What a row of the result store may hold."""


_UNFIT_ANSWERS = (
    "SELECT rowid AS rowid_, client, id, typeof(fingerprint) AS fingerprint, state, attempt, accepted_at, deadline_at, "
    "changed_at, typeof(correlation) AS correlation, typeof(request) AS request, typeof(last) AS last, delivered "
    "FROM answers WHERE (" + ANSWERS_FIT + ") IS NOT 1 LIMIT 1000"
)
"""Without the texts of prompts and answers: of those only what they are."""


class Lost(Struct, frozen=True):
    """A request of the result store that was set aside; its sender may wait for an answer."""

    client: str
    id: str


def repair_answers(connection: sqlite3.Connection) -> list[Lost]:
    """Set aside the rows of the result store that cannot be read; those among them whose sender can be told."""
    lost = []
    while rows := list(rows_of(connection, _UNFIT_ANSWERS)):
        for row in rows:
            client, request = row["client"], row["id"]
            if (
                isinstance(client, str)
                and isinstance(request, str)
                and is_identifier(client)
                and is_identifier(request)
            ):
                lost.append(Lost(client, request))
            connection.execute("DELETE FROM answers WHERE rowid = ?", (row.pop("rowid_"),))
            note(connection, "answers", "a column cannot be read", row)
    return lost[:MAX_KEPT]
