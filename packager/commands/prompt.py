"""``edge-packager prompt``: ask a device and print the answer as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.errors import RequestInvalid, UsageError
from contract.mqtt.faults import ErrorBody
from contract.mqtt.pictures import MAX_PICTURE_BYTES, picture_url
from edge_bundle.broker import add_broker, find_broker
from edge_bundle.client import Client
from edge_bundle.replies import Answer, Found, Piece, Queued
from edge_bundle.request_session import raise_error


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", help="what to ask; - reads it from standard input")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--device", metavar="D")
    where.add_argument("--group", metavar="G", help="any free device of the group")
    add_broker(parser)
    parser.add_argument("--client", metavar="NAME", help="our name in the topics (default: a random one)")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the question")
    parser.add_argument(
        "--image", action="append", type=Path, metavar="FILE", help="a PNG or JPEG before the text; may be repeated"
    )
    parser.add_argument("--raw", action="store_true", help="send TEXT as it is, without the chat template")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    parser.add_argument("--adapter", metavar="NAME[@VERSION]", help="answer with this adapter bundle of the device")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="default 600")
    parser.add_argument("--wait", action="store_true", help="also for a device that is not online yet, or has no model")
    parser.add_argument("--json", action="store_true", help="print the last frame as JSON and nothing else")
    parser.epilog = (
        "examples:\n"
        '  edge-packager prompt "What is the capital of France?" --device kitchen-1\n'
        '  edge-packager prompt "What is on the shelf?" --image shelf.jpg --device kitchen-1\n'
        '  edge-packager prompt "Tell a joke" --device kitchen-1 --temperature 0.8 --seed 7 --max-tokens 80\n'
        "  git log -1 | edge-packager prompt - --group office --broker mqtts://broker.example.org --json\n\n"
        "Ctrl-C and --timeout end the request on the device.\n\n"
        "exit status: 0 answered; 2 the command line or the request; 4 no broker, no such device or group, offline,\n"
        "without a model, or no whole answer within --timeout; 6 the device failed; 130 interrupted"
    )


def run(arguments: argparse.Namespace) -> int:
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    if not text.strip():
        raise UsageError("the prompt is empty")
    body = _body(arguments, text)
    where = {
        "device": arguments.device,
        "group": arguments.group,
        "timeout": arguments.timeout,
        "offline": "wait" if arguments.wait else "refuse",
    }
    with Client(find_broker(arguments), name=arguments.client, root=arguments.topic_root) as client:
        if arguments.json:
            return _print_last_frame(client, body, where)
        for found in client.ask(body, retry=True, **where):
            _print_news(found)
    print()
    return 0


def _print_news(found: Found) -> None:
    match found:
        case Piece():
            sys.stdout.write(("\n[the answer starts again]\n" if found.restart else "") + found.text)
            sys.stdout.flush()
        case Queued():
            seconds = found.estimate_ms / 1000
            print(f"requests that come first: {found.position}; it may begin in {seconds:.0f} s", file=sys.stderr)
        case Answer(error=ErrorBody() as error):
            raise_error(error)


def _print_last_frame(client: Client, body: dict[str, Any], where: dict[str, Any]) -> int:
    for found in client.ask(body, retry=True, **where):
        if isinstance(found, Answer):
            print(json.dumps(found.raw))
            if found.error is not None:
                raise_error(found.error)
    return 0


def _body(arguments: argparse.Namespace, text: str) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if arguments.raw:
        if arguments.image:
            raise UsageError("--image belongs to a chat: leave --raw out")
        body["prompt"] = text
    else:
        content = [*_pictures(arguments.image or []), {"type": "text", "text": text}]
        body["messages"] = [{"role": "user", "content": content if arguments.image else text}]
        if arguments.system:
            body["messages"].insert(0, {"role": "system", "content": arguments.system})
    for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "adapter"):
        value = getattr(arguments, name)
        if value is not None:
            body[name] = value
    return body


def _pictures(paths: list[Path]) -> Iterator[dict[str, Any]]:
    left = MAX_PICTURE_BYTES
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(left + 1)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        left -= len(data)
        if left < 0:
            text = "a request takes" if len(paths) == 1 else "the pictures of a request together have"
            raise UsageError(f"{path} is too large: {text} {MAX_PICTURE_BYTES} bytes at most; make it smaller")
        try:
            yield {"type": "image_url", "image_url": {"url": picture_url(data)}}
        except RequestInvalid as refused:
            raise UsageError(f"{path}: {refused.message}") from refused
