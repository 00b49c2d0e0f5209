"""``edge-fleet rollout``: plan, start, watch and steer rollouts."""

from __future__ import annotations

import argparse
import time

from fleet import operations
from fleet.commands.context import add_database, opened, operator, print_json
from fleet.commands.rollout_plan import add_specification, plan_or_start
from fleet.commands.rollout_views import describe_lines, list_all, show_one, summary, watch_one
from fleet.operations import Actor
from fleet.store.database import Database

EXAMPLES = """\
examples:
  edge-fleet rollout plan smollm2@1.1.0 --where 'site=oslo and ram>=4G'      # changes nothing
  edge-fleet rollout start smollm2@1.1.0 --where 'site=oslo' --waves 1,10%,100% --bake 30m
  edge-fleet rollout start --spec rollout.toml --depot https://models.example.org --root root.json
  edge-fleet rollout watch 12
  edge-fleet rollout pause 12
  edge-fleet rollout resume 12 --accept "nobody asks at night"
  edge-fleet rollout retry 12

exit status: 0 done, 2 the command line or the specification, 3 refused (watch: it was halted, rolled back or aborted),
4 no database or repository, or watch was told to wait no longer, 5 disk full or broken, 78 configuration,
130 interrupted
"""

_BY_NAME = {
    "pause": "send nothing new; what is under way goes on",
    "halt": "stop it as a failed gate would; its rollback says what is turned back",
    "abort": "end it; what is under way, and what was not judged yet, is turned back",
    "retry": "ask those again that failed or timed out, and nobody else",
    "approve": "let one begin that needs another person's approval",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """See :class:`contract.system.command_line.Command`."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("plan", "print waves, bytes and hours; changes nothing"),
        ("start", "begin, with the devices and waves that plan prints"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        add_specification(action)
        add_database(action)
    action = actions.add_parser("list", help="all rollouts", description="all rollouts")
    add_database(action)
    for name, text in (("show", "waves and devices of one"), ("watch", "follow one until it has ended")):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("id", type=int, metavar="ID")
        add_database(action)
        if name == "watch":
            action.add_argument("--timeout", default="30d", metavar="DURATION", help="wait no longer; default 30d")
    for name, text in _BY_NAME.items():
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("id", type=int, metavar="ID")
        add_database(action)
    action = actions.add_parser("resume", help="go on after a pause", description="go on after a pause")
    action.add_argument("id", type=int, metavar="ID")
    action.add_argument("--accept", metavar="WHY", help="let an inconclusive wave pass on your word")
    add_database(action)


def run(arguments: argparse.Namespace) -> int:
    """See :class:`contract.system.command_line.Command`."""
    with opened(arguments) as database:
        if arguments.action in ("plan", "start"):
            return plan_or_start(database, arguments)
        if arguments.action == "list":
            return list_all(database, arguments)
        if arguments.action == "show":
            return show_one(database, arguments)
        if arguments.action == "watch":
            return watch_one(database, arguments)
        return _operate(database, arguments)


def _operate(database: Database, arguments: argparse.Namespace) -> int:
    with database.write() as connection:
        after = operations.steer(
            connection, arguments.id, arguments.action, Actor(operator()), time.time(),
            accept=getattr(arguments, "accept", None),
        )  # fmt: skip
    if arguments.json:
        print_json(summary(after))
    else:
        print(describe_lines(after)[0])
    return 0
