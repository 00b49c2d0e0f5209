"""Puts installation together: what knows whom, and nothing else."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping

from agent.install import reconciler
from agent.install.desired_intake import DesiredIntake
from agent.install.planner import Planner
from agent.install.ports import Clock, Serving, Uniform
from agent.install.prepack import Prepacker
from agent.install.process.client import Installer, InstallerClient, run_installer
from agent.install.reporter import OnEvent, OnReported
from agent.install.settings import InstallConfig, InstallSettings
from agent.install.trust.monitor import TrustMonitor
from agent.install.update import runner
from agent.install.update.activation import Activation
from agent.install.update.canary_run import CanaryRun
from agent.install.update.collector import Collector
from agent.install.update.download_step import DownloadStep
from agent.install.update.gate import ActivationGate
from agent.install.update.restore import Restorer
from agent.install.update.step_reporter import StepReporter
from agent.state.audit import AuditLog, AuditRateLimiter
from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.worker.ports import WorkerStarter
from agent.worker.settings import WorkerSettings
from contract.source.access import Source
from contract.system.backoff import Backoff
from contract.system.durable import Disk


def make_reconciler(
    *,
    directory: StateDirectory,
    state: InstallationState,
    settings: InstallSettings,
    sources: Mapping[str, Source],
    serving: Serving,
    workers: WorkerStarter,
    worker_settings: WorkerSettings,
    on_reported: OnReported,
    on_event: OnEvent,
    disk: Disk | None = None,
    installer: Installer = run_installer,
    prepacker: Prepacker | None = None,
    now: Clock = time.time,
    uniform: Uniform = random.uniform,
) -> reconciler.Reconciler:
    """The reconciler of one device, in the running event loop.

    ``on_reported`` and ``on_event`` must not block. ``now`` gives Unix seconds, ``uniform`` a random number between
    two.
    """
    disk = disk or Disk()
    clock = asyncio.get_running_loop().time
    config, client = InstallConfig(settings, sources), InstallerClient(directory, installer)
    audit_limiter = AuditRateLimiter(clock)
    audit = AuditLog(directory.audit, disk, "agent")
    reporter = StepReporter(state, on_reported, on_event, audit=audit, audit_limiter=audit_limiter, clock=clock)
    restorer = Restorer(directory, state, serving, prepacker)
    canary_run = CanaryRun(
        directory=directory,
        serving=serving,
        workers=workers,
        worker_settings=worker_settings,
        restorer=restorer,
        reporter=reporter,
    )
    parts = runner.Parts(
        download=DownloadStep(client, reporter, audit_limiter, serving=serving, worker=worker_settings, clock=clock),
        gate=ActivationGate(state, reporter, now),
        activation=Activation(
            state=state, serving=serving, reporter=reporter, canary_run=canary_run, clock=clock, now=now
        ),
        restorer=restorer,
        collector=Collector(state, directory, disk, restorer),
    )
    update_runner = runner.UpdateRunner(
        disk=disk,
        state=state,
        settings=settings,
        reporter=reporter,
        parts=parts,
        backoff=Backoff(settings.retry_first_seconds, settings.retry_longest_seconds, uniform),
    )
    monitor = TrustMonitor(
        state=state, config=config, installer=client, runner=update_runner, reporter=reporter, uniform=uniform
    )
    planner, changed = Planner(), asyncio.Event()
    intake = DesiredIntake(
        state=state, config=config, reporter=reporter, planner=planner, runner=update_runner, changed=changed
    )
    return reconciler.Reconciler(
        state=state,
        config=config,
        reporter=reporter,
        planner=planner,
        parts=reconciler.Parts(intake, update_runner, monitor),
        changed=changed,
    )
