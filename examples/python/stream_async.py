"""Asks several questions at once and prints each answer as it comes.

python stream_async.py "Tell a story." "Say hello."
"""

import asyncio
import os
import sys

from edge_bundle import AsyncClient

BROKER = os.environ.get("EDGE_BROKER", "mqtt://127.0.0.1:1883")
DEVICE = os.environ.get("EDGE_DEVICE", "kitchen-1")


async def ask(client: AsyncClient, number: int, question: str) -> None:
    text = ""
    async for chunk in client.stream(
        device=DEVICE, messages=[{"role": "user", "content": question}], max_tokens=100, timeout=120
    ):
        if chunk.restart:  # the device starts over: what came before is void
            text = ""
        text += chunk.choices[0].delta.content or ""
        print(f"{number}: {text.strip()!r}", flush=True)


async def main() -> None:
    # One connection for all; the device runs them together.
    async with AsyncClient(BROKER) as client, asyncio.TaskGroup() as group:
        for number, question in enumerate(sys.argv[1:], start=1):
            group.create_task(ask(client, number, question))


asyncio.run(main())
