"""What answers requests, put together: the gateway to the broker and the serving side, tied to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from agent.config import AgentConfig
from agent.mqtt.gateway import Gateway
from agent.serving.loop import Observers
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
    on_desired: Callable[[bytes, bool], None],
    observers: Observers,
) -> Frontend:
    """Make it; nothing of it runs yet."""
    meter = LlmMeter(round(clock(), 3))
    result_store = ResultWriter(database, clock, keep_text=config.serving.store_results == "text")
    gateway = Gateway(config, boot_id, on_desired=on_desired, on_broker=observers.on_health, memory=memory)

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

    def on_load(queued: int) -> None:
        gateway.on_load(queued)
        observers.on_load(queued)

    dependencies = Dependencies(
        topics=config.topics,
        outlet=gateway.connection.outlet,
        result_store=result_store,
        load=load,
        meter=meter,
        now_unix=clock,
    )
    serving = Serving(config.serving, dependencies, Observers(observers.on_health, on_load))
    gateway.serving = serving
    return Frontend(gateway, serving, result_store, meter)
