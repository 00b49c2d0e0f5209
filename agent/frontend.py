"""What answers requests, put together: the serving side and the gateway to the broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from agent.config import AgentConfig
from agent.mqtt import Sender, SizeLimit
from agent.mqtt.gateway import Gateway, known_limit
from agent.serving.serving import Dependencies, Serving
from agent.state.broker_memory import BrokerMemory
from agent.state.database import Database
from agent.state.result_writer import ResultWriter
from agent.telemetry.llm import LlmMeter
from agent.worker.ports import OnEvent, Worker, WorkerStarter


class Frontend(Struct, frozen=True):
    """What answers requests: the broker's side, the serving side, where results are kept and what counts them."""

    gateway: Gateway
    serving: Serving
    result_store: ResultWriter
    meter: LlmMeter


def make_frontend(
    config: AgentConfig,
    database: Database,
    memory: BrokerMemory,
    workers: WorkerStarter,
    *,
    boot_id: str,
    clock: Callable[[], float],
) -> Frontend:
    """Make it; nothing of it runs yet."""
    meter = LlmMeter(round(clock(), 3))
    result_store = ResultWriter(database, clock, keep_text=config.serving.store_results == "text")
    sender = Sender(SizeLimit(known_limit(memory)))

    async def load(
        bundle_dir: Path,
        *,
        derived_dir: Path | None,
        adapters: Mapping[str, Path],
        reclaimable_bytes: int,
        on_event: OnEvent,
    ) -> Worker:
        return await workers(
            config.worker,
            bundle_dir,
            derived_dir=derived_dir,
            adapters=adapters,
            reclaimable_bytes=reclaimable_bytes,
            on_event=on_event,
        )

    dependencies = Dependencies(
        topics=config.topics,
        outlet=sender,
        result_store=result_store,
        load=load,
        meter=meter,
        now_unix=clock,
    )
    serving = Serving(config.serving, dependencies)
    gateway = Gateway(config, sender, serving, boot_id=boot_id, memory=memory)
    return Frontend(gateway, serving, result_store, meter)
