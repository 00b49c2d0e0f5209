"""An answer that is JSON of a given type, token by token: python extract.py "Pump 3 is leaking since 4 pm" """

import os
import sys
from dataclasses import dataclass
from typing import Literal

from edge_bundle import Client


@dataclass
class Report:
    machine: Literal["pump", "press", "oven", "unknown"]
    urgent: bool


with Client(os.environ.get("EDGE_BROKER", "mqtt://127.0.0.1:1883")) as client:
    done = client.complete(
        device=os.environ.get("EDGE_DEVICE", "kitchen-1"),
        messages=[{"role": "user", "content": f"Which machine, and is it urgent? {sys.argv[1]}"}],
        parse=Report,
        max_tokens=100,
        timeout=120,
    )
report = done.parsed
print("urgent:" if report.urgent else "not urgent:", report.machine)
