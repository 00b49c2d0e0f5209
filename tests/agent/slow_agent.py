"""An agent as a process whose workers are doubles: ``python -m tests.agent.slow_agent CONFIG``. With EDGE_STALL naming
a file they load for as long as that is there.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from agent.app import Service
from agent.config import load_config
from agent.worker.supervisor import WorkerProcess
from tests.agent.worker.double import DOUBLE


async def serve_until_stopped(config: Path) -> None:
    workers: Any = partial(WorkerProcess.start, command=DOUBLE)
    service = Service(load_config(config), workers)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.stop)
    await service.run()


if __name__ == "__main__":
    asyncio.run(serve_until_stopped(Path(sys.argv[1])))
