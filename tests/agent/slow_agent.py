"""An agent as a process whose workers load for as long as a file is there: ``python -m tests.agent.slow_agent CONFIG
FILE``. As a worker (``--fd`` is among its arguments) it is one of them.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def work(stall: Path) -> None:
    from agent.worker.main import serve
    from contract.system.parent_death import end_with_parent
    from tests.agent.worker.stand_in_worker import Moody

    def open_engine(load: Any, progress: Any) -> Any:
        stall.with_suffix(".loading").touch()
        while stall.exists():
            time.sleep(0.01)
        return Moody(Path(load.bundle_dir))

    end_with_parent()
    with socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1])) as connection:
        sys.exit(serve(connection, open_engine))


async def serve_until_stopped(config: Path, stall: Path) -> None:
    from agent.app import Service
    from agent.config import load_config
    from agent.worker.supervisor import WorkerProcess

    command = (sys.executable, str(Path(__file__).resolve()), str(config), str(stall))
    workers: Any = partial(WorkerProcess.start, command=command)
    service = Service(load_config(config), workers)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.stop)
    await service.run()


if __name__ == "__main__":
    if "--fd" in sys.argv:
        work(Path(sys.argv[2]))
    else:
        asyncio.run(serve_until_stopped(Path(sys.argv[1]), Path(sys.argv[2])))
