"""The double of a worker: no model, quick, and does what its prompts say.

``script`` is what prompts say, ``engine`` the engine that obeys them. A :class:`FakeWorker` runs it in this process; as
:data:`DOUBLE` it is a process behind the product's own worker loop and supervisor.
``tests/agent/worker/conformance`` holds both, and the product's worker with a real model, against one suite.
"""

import sys
from pathlib import Path

from tests.agent.worker.double.engine import ScriptedEngine
from tests.agent.worker.double.in_process import FakeWorker, FakeWorkers
from tests.agent.worker.double.script import prompt_of

DOUBLE = (sys.executable, str(Path(__file__).with_name("__main__.py")))
"""The command of a worker process, as ``WorkerProcess.start`` takes one."""

__all__ = ["DOUBLE", "FakeWorker", "FakeWorkers", "ScriptedEngine", "prompt_of"]
