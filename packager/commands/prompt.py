"""``edge-packager prompt``: ask a device and print the answer as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from contract.errors import EngineFailed, RequestInvalid, SourceUnavailable, UsageError
from contract.mqtt.messages import ErrorBody
from packager.client.broker import add_broker, find_broker
from packager.client.client import Client
from packager.client.replies import Answer, Piece


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", help="what to ask; - reads it from standard input")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--device", metavar="D")
    where.add_argument("--group", metavar="G", help="any free device of the group")
    add_broker(parser)
    parser.add_argument("--client", metavar="NAME", help="our name in the topics (default: a random one)")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the question")
    parser.add_argument("--raw", action="store_true", help="send TEXT as it is, without the chat template")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="default 600")
    parser.add_argument("--json", action="store_true", help="print the last frame as JSON and nothing else")
    parser.epilog = (
        "examples:\n"
        '  edge-packager prompt "What is the capital of France?" --device kitchen-1\n'
        '  edge-packager prompt "Tell a joke" --device kitchen-1 --temperature 0.8 --seed 7 --max-tokens 80\n'
        "  git log -1 | edge-packager prompt - --group office --broker mqtts://broker.example.org --json"
    )


def run(arguments: argparse.Namespace) -> int:
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise UsageError("the prompt is empty")
    body = _body(arguments, text)
    with Client(find_broker(arguments), name=arguments.client, root=arguments.topic_root) as client:
        pieces = client.ask(body, device=arguments.device, group=arguments.group, seconds=arguments.timeout)
        for found in pieces:
            if isinstance(found, Piece):
                if not arguments.json:
                    _show(found)
            else:
                return _end(found, as_json=arguments.json)
    return 1


def _body(arguments: argparse.Namespace, text: str) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if arguments.raw:
        body["prompt"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
        if arguments.system:
            body["messages"].insert(0, {"role": "system", "content": arguments.system})
    for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop"):
        value = getattr(arguments, name)
        if value is not None:
            body[name] = value
    return body


def _show(piece: Piece) -> None:
    if piece.restart:
        sys.stdout.write("\n[the answer starts again]\n")
    sys.stdout.write(piece.text)
    sys.stdout.flush()


def _end(answer: Answer, *, as_json: bool) -> int:
    if answer.error is not None:
        if as_json:
            print(json.dumps(answer.raw))
        _raise(answer.error)
    if as_json:
        print(json.dumps(answer.raw))
    else:
        print()
    return 0


def _raise(error: ErrorBody) -> None:
    if error.code in (429, 503):
        raise SourceUnavailable(f"the device cannot answer now: {error.message}")
    if error.code >= 500:
        raise EngineFailed(f"the device failed: {error.message}")
    field = error.field if isinstance(error.field, str) else None
    raise RequestInvalid(f"the device refuses the request: {error.message}", field=field, code=error.code)
