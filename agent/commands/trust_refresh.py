"""``edge-agent trust refresh``: look now what the sources say, and say what has changed by that."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from agent.commands.context import CliContext, absolute_source, act_as_owner, existing_context
from agent.commands.trust_facts import TrustFacts, read_facts
from agent.install.process.client import run_installer
from agent.install.process.messages import RefreshTrustJob
from agent.operator.control import Order, call_agent, sources_to_ask
from agent.state.lock import FileLock


def refresh_now(arguments: argparse.Namespace) -> int:
    """Do it, by the agent where one runs; the exit status.

    Raises:
        EdgeBundleError: trust could not be brought up to date.
    """
    context = existing_context(arguments)
    source = None if arguments.source is None else absolute_source(arguments.source)
    act_as_owner(context.directory)
    before = read_facts(context.directory)
    by_agent = call_agent(context.directory, Order("refresh_trust", source=source), lambda reported: None) is not None
    if not by_agent:
        _refresh_here(context, source)
    after = read_facts(context.directory)
    if arguments.json:
        print(json.dumps(changes(before, after) | {"by_agent": by_agent}))
    else:
        print("\n".join(lines(before, after, replaces=context.install.on_revoked == "replace", by_agent=by_agent)))
    return 0


def _refresh_here(context: CliContext, source: str | None) -> None:
    sources = sources_to_ask(source, context.sources)
    with FileLock(context.directory.lock, "an agent that is starting, or another command"):
        job = RefreshTrustJob(str(context.directory.root), sources, offline_grace=context.install.offline_grace)
        asyncio.run(run_installer(job, lambda line: None))


def changes(before: TrustFacts, after: TrustFacts) -> dict[str, Any]:
    """What a script is told."""
    roles = {
        role: {
            "version": facts.version,
            "previous_version": before.roles[role].version if role in before.roles else None,
            "expires": facts.expires.isoformat(),
        }
        for role, facts in after.roles.items()
    }
    return {
        "ok": True,
        "changed": (before.roles, before.bundles, before.revoked) != (after.roles, after.bundles, after.revoked),
        "roles": roles,
        "added": [each for each in after.bundles if each not in before.bundles],
        "removed": [each for each in before.bundles if each not in after.bundles],
        "revoked": after.revoked,
        "newly_revoked": [each for each in after.revoked if each not in before.revoked],
        "revoked_here": [{"bundle": each.bundle, "active": each.active} for each in after.affected],
    }


def lines(before: TrustFacts, after: TrustFacts, *, replaces: bool, by_agent: bool) -> list[str]:
    """What a person is told."""
    rows = []
    for role, facts in after.roles.items():
        old = before.roles.get(role)
        version = f"{facts.version}" if old is None or old == facts else f"{old.version} → {facts.version}"
        new = "" if old == facts else "  new"
        rows.append(f"{role:<10} version {version:<10} expires {facts.expires:%Y-%m-%d %H:%M}{new}")
    found = changes(before, after)
    rows += [f"listed     {reference}" for reference in found["added"]]
    rows += [f"no longer  {reference}" for reference in found["removed"] if reference not in after.revoked]
    rows += [f"revoked    {reference}" for reference in found["newly_revoked"]]
    for each in after.affected:
        rows.append(f"revoked    {each.bundle} is on this device{_consequence(each.active, replaces, by_agent)}")
    rows.append("trust is up to date" + ("" if found["changed"] else "; nothing has changed"))
    return rows


def _consequence(active: bool, replaces: bool, by_agent: bool) -> str:
    if not active:
        return " and will not become active"
    if not replaces:
        return ' and serves on: install.on_revoked is "keep"'
    return ", active; " + ("the agent takes it out of service" if by_agent else "the agent replaces it when it starts")
