"""Sends a still every minute and prints what the model says of each as a line of JSON.

python camera.py --still /run/camera/still.jpg           a file that something else writes again and again
python camera.py -- rpicam-still --nopreview --output -  a command that writes a JPEG or PNG to its standard output

A still that comes before the last one was answered takes its place (supersede_key): a slow box looks at the newest one.
"""

import argparse
import asyncio
import base64
import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from edge_bundle import AsyncClient, EngineFailed, RequestInvalid, SourceUnavailable

TAKE_SECONDS = 30
ANSWER_SECONDS = 3600


@dataclass
class Shelf:
    state: Literal["full", "half empty", "empty", "not to be seen"]
    person_in_front: bool


async def take(arguments: argparse.Namespace) -> bytes:
    if arguments.still:
        return await asyncio.to_thread(Path(arguments.still).read_bytes)
    process = await asyncio.create_subprocess_exec(*arguments.command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(TAKE_SECONDS):
            still, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise OSError(f"{arguments.command[0]} took longer than {TAKE_SECONDS} s") from None
    if process.returncode != 0:
        raise OSError(f"{arguments.command[0]} ended with {process.returncode}")
    return still


async def look(client: AsyncClient, still: bytes, taken: str, detail: str) -> None:
    kind = "image/png" if still.startswith(b"\x89PNG") else "image/jpeg"
    url = f"data:{kind};base64,{base64.b64encode(still).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
    question = {"type": "text", "text": "What is the state of the shelf, and is somebody in front of it?"}
    try:
        done = await client.complete(
            device=os.environ.get("EDGE_DEVICE", "kitchen-1"),
            messages=[{"role": "user", "content": [picture, question]}],
            parse=Shelf,
            supersede_key="camera",
            max_tokens=100,
            timeout=ANSWER_SECONDS,
        )
    except (SourceUnavailable, RequestInvalid, EngineFailed) as error:
        # A newer still took its place, or the box is away: the next one may be better.
        print(f"{taken} no answer: {error}", file=sys.stderr, flush=True)
    else:
        print(json.dumps({"taken": taken, **asdict(done.parsed)}), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description="Sends a still every minute and prints what the model says of each.")
    parser.add_argument("--still", metavar="FILE", help="a picture that something else writes")
    parser.add_argument("--every", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after so many stills (default: never)")
    parser.add_argument(
        "--detail", choices=("auto", "low", "high"), default="auto", help="low: as a whole, a fraction of the time"
    )
    parser.add_argument("command", nargs="*", help="what takes a still, after --")
    arguments = parser.parse_args()
    if bool(arguments.still) == bool(arguments.command):
        parser.error("give either --still FILE or, after --, a command that writes a picture")
    # The device knows programs by their names: two cameras need two.
    name = os.environ.get("EDGE_CLIENT", "camera")
    broker = os.environ.get("EDGE_BROKER", "mqtt://127.0.0.1:1883")
    async with AsyncClient(broker, name=name) as client, asyncio.TaskGroup() as group:
        tried = 0
        while True:
            taken = datetime.now(UTC).isoformat()
            try:
                group.create_task(look(client, await take(arguments), taken, arguments.detail))
            except OSError as error:
                print(f"{taken} no still: {error}", file=sys.stderr, flush=True)
            tried += 1
            if tried == arguments.count:
                break
            await asyncio.sleep(arguments.every)


try:
    asyncio.run(main())
except SourceUnavailable as error:
    sys.exit(f"not now: {error}")
