"""A bundle that sees is shown the picture of its canary before it may answer anybody."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from agent.install.ports import SealedBundle
from agent.install.settings import InstallSettings
from agent.install.update.canary import CanaryPassed, run_canary
from agent.state.installation import Failure
from agent.worker.settings import WorkerSettings
from contract.bundle.manifest import MANIFEST_FILE, Canary, PictureCanary, encode_manifest
from contract.reasons import Reason
from tests.agent.device import sealed
from tests.agent.install.stage import StandInWorkers
from tests.proofs import pretend_verified
from tests.seeing import png

SHOWN = PictureCanary("<|user|>\ufffc\nWhat is it?", png(255, 0, 0), "A red square.", 1.5, 0.2)


async def judge(directory: Path, misread: float) -> CanaryPassed | Failure:
    bundle = sealed(directory=directory)
    manifest = msgspec.structs.replace(
        bundle.manifest, canary=[Canary("Hello", " world", 2.0, 0.1)], picture_canary=SHOWN
    )
    (directory / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    workers = StandInWorkers()
    workers.misread = misread
    given = SealedBundle(pretend_verified(directory, bundle.digest, manifest))
    return await run_canary(given, workers, WorkerSettings(), InstallSettings())


@pytest.mark.parametrize("misread", [0.0, 0.19, -0.19])
async def test_what_sees_as_the_build_did_passes(misread: float, tmp_path: Path) -> None:
    found = await judge(tmp_path, misread)
    assert isinstance(found, CanaryPassed), found
    assert found.drift == pytest.approx(abs(misread))


@pytest.mark.parametrize("misread", [0.3, -0.3, math.nan])
async def test_what_sees_something_else_is_refused(misread: float, tmp_path: Path) -> None:
    found = await judge(tmp_path, misread)
    assert isinstance(found, Failure)
    assert found.reason == Reason.CANARY_DRIFT
    assert "the canary about a picture" in found.message
