"""Asks a device and prints the answer: python ask.py "What is the capital of France?" """

import os
import sys

from edge_bundle import Client, EngineFailed, RequestInvalid, SourceUnavailable

broker = os.environ.get("EDGE_BROKER", "mqtt://127.0.0.1:1883")
device = os.environ.get("EDGE_DEVICE", "kitchen-1")

try:
    with Client(broker) as client:
        done = client.complete(
            device=device, messages=[{"role": "user", "content": sys.argv[1]}], max_tokens=100, timeout=120
        )
except RequestInvalid as error:  # the request must change
    sys.exit(f"{error.field or 'request'}: {error.message}")
except SourceUnavailable as error:  # later, or another device
    sys.exit(f"not now: {error.message}")
except EngineFailed as error:  # the device failed at this request
    sys.exit(f"failed: {error.message}")

print(done.choices[0].message.content.strip())
print(f"{done.usage.completion_tokens} tokens from {done.model}, {done.choices[0].finish_reason}", file=sys.stderr)
