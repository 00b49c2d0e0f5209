"""What a device trusts, read from its trust store: for people and scripts."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from agent.state.installation import InstallationState
from agent.state.layout import StateDirectory
from agent.state.opening import open_to_read


class RoleFacts(Struct, frozen=True):
    """One role's metadata as it was verified last."""

    version: int
    expires: datetime


class Affected(Struct, frozen=True):
    """A bundle on this device that was revoked."""

    bundle: str
    active: bool


class TrustFacts(Struct, frozen=True):
    """``bundles`` and ``revoked`` as the signed list has them; ``affected`` are on this device."""

    roles: dict[str, RoleFacts]
    bundles: list[str]
    revoked: list[str]
    affected: list[Affected] = []


def read_facts(directory: StateDirectory) -> TrustFacts:
    """What stands in the trust store and the state now; may be read while an agent runs.

    Raises:
        BundleRefused: TRUST_STATE_LOST; StoreBroken.
    """
    # tuf is loaded here, in a command, and never by the running agent.
    from contract.trust.signing import state_of
    from contract.trust.store import TrustStore
    from contract.trust.targets_index import TargetsIndex

    database = open_to_read(directory)
    try:
        state = InstallationState(database)
        files = TrustStore(directory.trust).load(state)
        active, revoked_here = state.snapshot().active, state.warning_store.revoked()
        affected = [
            Affected(each.reference, each.digest == active) for each in state.bundles() if each.digest in revoked_here
        ]
    finally:
        database.close()
    signed = {role: state_of(data, role) for role, data in files.items()}
    listing = TargetsIndex.of(files["targets"]) if "targets" in files else None
    return TrustFacts(
        roles={role: RoleFacts(each.version, each.expires) for role, each in signed.items()},
        bundles=sorted(listing.bundles) if listing else [],
        revoked=listing.revoked if listing else [],
        affected=affected,
    )
