"""The table: which part of which definition stops which attack, and which tests fail without them.

Several cuts in one row are layers that each stop the attack; the tests fail when all of them are gone. Where the
check is python-tuf's, it is taken out of python-tuf: our tests must notice if a new version of it stopped checking.
"""

# ruff: noqa: E501 - names of tests are long

from __future__ import annotations

from msgspec import Struct

from tests.sabotage.mutation import (
    Mutation,
    always,
    arguments,
    base,
    body,
    call,
    condition,
    drop,
    drop_keyword,
    drop_operand,
    handler,
    instead,
    let_through,
    loop,
    never,
    optional,
    returns,
    swap,
    value,
)  # fmt: skip

_HERE = {
    "M": "tests/contract/trust/test_attacks_metadata.py",
    "D": "tests/contract/trust/test_attacks_device.py",
    "K": "tests/contract/trust/test_key_policy.py",
    "H": "tests/contract/source/test_http.py",
    "T": "tests/contract/source/test_tar.py",
    "F": "tests/contract/source/test_conformance.py",
    "S": "tests/contract/test_strict_json.py",
    "N": "tests/contract/test_identifiers.py",
    "B": "tests/contract/bundle/test_manifest.py",
    "G": "tests/contract/bundle/test_genai_config.py",
    "O": "tests/contract/onnx/test_wire.py",
    "Q": "tests/contract/mqtt/test_reading.py",
    "R": "tests/packager/publish/test_repository.py",
    "I": "tests/agent/install/download/test_pipeline.py",
    "C": "tests/agent/install/test_reconciler.py",
    "V": "tests/agent/install/trust/test_revocation.py",
    "X": "tests/agent/install/process/test_client.py",
    "W": "tests/agent/install/download/test_poor_sources.py",
    "Y": "tests/contract/source/test_access.py",
    "E": "tests/agent/install/test_settings.py",
    "A": "tests/agent/state/test_audit.py",
    "P": "tests/agent/host/test_host.py",
    "J": "tests/contract/chat/test_template.py",
    "U": "tests/contract/trust/test_tuf_client.py",
}


class Check(Struct, frozen=True):
    """Without ``cuts`` nothing stops ``attack``, and every one of ``tests`` must fail."""

    attack: str
    cuts: tuple[Mutation, ...]
    tests: tuple[str, ...]

    @property
    def hangs(self) -> bool:
        """Whether the tests never end without the check, rather than fail."""
        return self.attack in _HANGING


def _check(attack: str, tests: str, *cuts: Mutation) -> Check:
    named = [word.split(".", 1) for word in tests.split()]
    return Check(attack, cuts, tuple(f"{_HERE[where]}::test_{name}" for where, name in named))


_HANGING = frozenset(
    {
        "slow retrieval: stalling",
        "slow retrieval: dripping",
        "endless data: headers, interim answers, trailers",
        "malicious mirror: redirects in circles",
        "desired names what failed here",
        "a chat template without end",
    }
)
_TUF = "tuf.ngclient._internal.trusted_metadata_set"
_PAYLOAD = "tuf.api._payload"
_JSON = "contract.strict_json"
_KEYS = "contract.trust.key_policy"
_REFRESH = "contract.trust.refresh"
_RESOLVE = "contract.trust.resolve"
_STORE = "contract.trust.store"
_NAMES = "contract.identifiers"
_TAR = "contract.source.tar_index"
_PACE = "contract.source.throughput_guard"
_HTTP = "contract.source.http_session"
_RULES = "contract.onnx.rules"
_PIPELINE = "agent.install.download.pipeline"
_FACTS = "agent.host.facts"
_VERIFIES = returns(f"{_PAYLOAD}:VerificationResult.verified", new="True")
_STALE = returns(f"{_PAYLOAD}:Signed.is_expired", new="False")
_OTHER_VERSION = never(f"{_TUF}:TrustedMetadataSet.update_delegated_targets", "meta", "version")
_OLDER_SNAPSHOT = never(f"{_TUF}:TrustedMetadataSet.update_timestamp", "new_snapshot_meta")
_OLDER_TARGETS = never(f"{_TUF}:TrustedMetadataSet.update_snapshot", "new_fileinfo", "version")
_BELOW_FLOOR = never(f"{_STORE}:TrustStore.keep", "fallen")
_NOT_BELOW_FLOOR = value(f"{_STORE}:TrustStore._read", "fallen_below", new="None")
_MEMBER = never(f"{_TAR}:_describe", "is_repository_path")
_SHORT = never(f"{_TAR}:_check_end", "rest", "BLOCK")
_UNLISTED = loop("contract.bundle.verifier:find_listing_faults", "extra", over="()")
_DOTS = never(f"{_NAMES}:check_path", "part", "..")
_SLASH = never(f"{_NAMES}:check_path", "startswith", "/")
_BELOW = never(f"{_NAMES}:path_below", "is_relative_to")
_CHANGED_IN_BETWEEN = drop("agent.install.update.canary_run:CanaryRun.run_canary", "check_unchanged")

CHECKS: tuple[Check, ...] = (
    # Repository, mirror, network.
    _check(
        "arbitrary installation",
        "M.attack_arbitrary_installation_with_foreign_keys D.attack_tar_of_another_publisher",
        _VERIFIES,
    ),
    _check(
        "arbitrary manifest",
        "M.attack_arbitrary_manifest",
        never(f"{_RESOLVE}:fetch_manifest", "sha256"),
    ),
    _check(
        "changed object",
        "I.a_changed_object_is_refused_and_nothing_of_it_kept",
        returns("agent.install.download.fetch_plan:matches", "sha256", new="True"),
        always(f"{_PIPELINE}:DownloadPipeline._verify", "_read_back"),
    ),
    _check(
        "endless data: a document",
        "M.attack_endless_data_in_every_document M.attack_endless_root",
        arguments(f"{_REFRESH}:SourceFetcher.download_bytes", of="read(..., 2**60)"),
        arguments(f"{_REFRESH}:SourceFetcher.download_bytes", of="loads(..., max_bytes=2**60)"),
        arguments(f"{_RESOLVE}:fetch_manifest", of="read(..., 2**60)"),
    ),
    _check(
        "endless data: a body over HTTP",
        "H.an_endless_body_is_refused",
        let_through(
            "contract.source.http:HttpSource.read", "data", "max_bytes", by="if len(data) > 50_000_000:\n    break"
        ),
        call("contract.source.http:HttpSource.read", "min", "PIECE_BYTES", becomes="PIECE_BYTES"),
        never("contract.source.http:HttpSource.read", "raw", "length"),
    ),
    _check(
        "endless data: headers, interim answers, trailers",
        "H.endless_talk_around_a_body_ends",
        never(f"{_PACE}:PacedReader.readinto", "_allowance", "left"),
        never(f"{_PACE}:PacedReader.readinto", "window_seconds"),
    ),
    _check(
        "endless data: roots",
        "M.attack_endless_roots_end",
        value(f"{_REFRESH}:MAX_ROOT_ROTATIONS", new="4096"),
    ),
    _check(
        "slow retrieval: stalling",
        "H.a_stalled_or_dripping_server_is_given_up_on",
        arguments(f"{_PACE}:PacedReader.readinto", "read_seconds", of="settimeout(None)"),
    ),
    _check(
        "slow retrieval: dripping",
        "H.a_dripping_stream_is_given_up_on_as_too_slow H.a_stalled_or_dripping_server_is_given_up_on",
        never(f"{_PACE}:PacedReader.readinto", "min_bytes_per_second"),
    ),
    _check(
        "slow retrieval: elsewhere",
        "X.another_source_takes_over_in_the_middle_of_a_range",
        handler("agent.install.download.mirrors:Mirrors.first_working", "SourceUnavailable", does="raise"),
    ),
    _check(
        "slow retrieval: later",
        "C.an_unavailable_source_is_tried_again",
        never("agent.install.planner:Planner.updated", "later"),
    ),
    _check(
        "extraneous file: in a bundle directory",
        "R.attack_bundle_directory_that_is_not_what_it_lists",
        _UNLISTED,
    ),
    _check("extraneous file: in an .edgebundle", "T.attack_member_outside_the_set", _MEMBER),
    _check(
        "extraneous file: on the device",
        "I.tampering_is_found",
        _UNLISTED,
    ),
    _check(
        "fast-forward: recovery",
        "M.attack_fast_forward_is_undone_by_rotating_the_keys",
        returns(f"{_STORE}:_era", new="'0' * 16"),
    ),
    _check(
        "fast-forward: beyond any reader",
        "M.attack_fast_forward_beyond_what_any_reader_holds S.ambiguous_or_hostile_documents_are_refused_with_their_reason",
        condition(f"{_JSON}:_parse.integer", "MAX_INTEGER", new="(value := int(digits[:4000])) is None"),
    ),
    _check(
        "freeze: expired metadata",
        "M.attack_freeze M.attack_freeze_of_the_snapshot D.attack_clock_at_1970_accepts_nothing_expired",
        _STALE,
    ),
    _check(
        "freeze: by an old stick, beyond the grace",
        "D.grace_covers_timestamp_and_snapshot_of_a_tar_only",
        value(f"{_RESOLVE}:OFFLINE_GRACE", new="timedelta(days=3000)"),
    ),
    _check(
        "freeze: grace for a server",
        "D.grace_covers_timestamp_and_snapshot_of_a_tar_only",
        drop_operand(f"{_RESOLVE}:refresh", "isinstance", "TarSource"),
    ),
    _check(
        "freeze: expired root and targets with grace",
        "M.attack_expired_root_and_targets_are_never_forgiven",
        never(f"{_REFRESH}:Refresh._update", "is_expired"),
    ),
    _check(
        "malicious mirror: incomplete",
        "M.an_incomplete_mirror_is_worth_another_try",
        drop(f"{_REFRESH}:Refresh._explain", "SourceUnavailable"),
    ),
    _check(
        "malicious mirror: ends a deployment by what it delivers",
        "W.whatever_is_sent_for_a_while_is_no_verdict_on_the_bundle",
        never("agent.install.download.mirrors:Mirrors.first_working", "DELIVERY"),
    ),
    _check(
        "malicious mirror: breaks off",
        "D.attack_source_that_breaks_off_leaves_trust_as_it_was",
        instead(
            f"{_REFRESH}:Refresh._update",
            "updater",
            "refresh",
            do="try:\n    updater.refresh()\nexcept Exception:\n    (self._scratch / 'trusted.json').write_bytes(b'')\n    raise",
        ),
    ),
    _check(
        "malicious mirror: leaves the https that was configured",
        "H.tls_is_verified_by_default_and_never_left_by_redirect",
        never(f"{_HTTP}:Exchange.get", "https", "startswith"),
    ),
    _check(
        "malicious mirror: asks for another server's credentials",
        "H.credentials_go_to_the_configured_server_only",
        drop_operand(f"{_HTTP}:Exchange.get", "address", "first"),
    ),
    _check(
        "malicious mirror: asks for another server's client certificate",
        "Y.a_client_certificate_is_shown_to_its_server_and_to_no_other",
        drop_operand(f"{_HTTP}:Exchange._tls_for", "ours"),
    ),
    _check(
        "malicious mirror: redirects in circles",
        "H.follows_a_redirect_and_gives_up_on_a_circle",
        loop(f"{_HTTP}:Exchange.get", "MAX_REDIRECTS", over="iter(int, 1)"),
    ),
    _check(
        "mix-and-match: by digests",
        "M.attack_mix_and_match_of_snapshot M.attack_mix_and_match_of_targets",
        drop(f"{_TUF}:TrustedMetadataSet.update_snapshot", "snapshot_meta", "verify_length_and_hashes"),
        drop(f"{_TUF}:TrustedMetadataSet.update_delegated_targets", "meta", "verify_length_and_hashes"),
        never(f"{_TUF}:TrustedMetadataSet._check_final_snapshot", "version"),
        _OTHER_VERSION,
    ),
    _check(
        "mix-and-match: by versions",
        "M.attack_mix_without_hashes",
        _OTHER_VERSION,
    ),
    _check(
        "mix-and-match: a manifest of another bundle",
        "M.attack_manifest_that_names_another_bundle",
        never(f"{_RESOLVE}:fetch_manifest", "manifest", "name", "version"),
    ),
    _check(
        "rollback of metadata: timestamp",
        "M.attack_metadata_rollback D.attack_older_directory_or_server_is_a_rollback",
        never(f"{_TUF}:TrustedMetadataSet.update_timestamp", "new_timestamp", "version", "Lt"),
        _OLDER_SNAPSHOT,
        _OLDER_TARGETS,
        _BELOW_FLOOR,
    ),
    _check(
        "rollback of metadata: snapshot",
        "M.attack_rollback_of_the_snapshot_version",
        _OLDER_SNAPSHOT,
        _OLDER_TARGETS,
        _BELOW_FLOOR,
    ),
    _check(
        "rollback of metadata: targets",
        "M.attack_rollback_of_targets_by_stolen_online_keys",
        _OLDER_TARGETS,
        _BELOW_FLOOR,
    ),
    _check(
        "rollback of metadata: targets left out",
        "M.attack_targets_left_out_of_the_snapshot",
        let_through(f"{_TUF}:TrustedMetadataSet.update_snapshot", "new_fileinfo", "None", by="continue"),
    ),
    _check(
        "rollback of a version: no longer listed",
        "D.attack_older_tar_with_a_bundle_delisted_since",
        never(f"{_REFRESH}:SourceFetcher.download_bytes", "known", "version"),
    ),
    _check(
        "rollback of a version: revoked",
        "M.attack_revoked_bundle D.attack_older_tar_with_a_bundle_revoked_since R.revoked_bundles_stay_revoked",
        never("contract.trust.targets_index:TargetsIndex.entry", "revoked"),
    ),
    _check(
        "rollback of a version: published again with other contents",
        "R.a_published_version_cannot_be_replaced",
        never("packager.publish.repository:Repository.publish", "known", "digest"),
    ),
    _check(
        "rollback of the epoch",
        "I.an_epoch_below_the_committed_one_is_refused",
        never("agent.install.verify.reverify:check_epoch", "security_epoch"),
    ),
    _check(
        "rollback of the epoch: by going back to a revoked bundle",
        "V.a_damaged_bundle_does_not_fall_back_to_a_revoked_one",
        drop_operand("agent.install.update.restore:Restorer.serve_active", "revoked"),
    ),
    _check(
        "emptied trust file with an old .edgebundle",
        "D.attack_emptied_trust_file_with_an_old_stick D.attack_truncated_trust_file",
        instead(f"{_STORE}:TrustStore._read", "_lost", " is damaged", do="raise"),
    ),
    _check(
        "changed trust file",
        "D.attack_one_role_taken_out_of_the_trust_file",
        never(f"{_STORE}:TrustStore._read", "sha256", "_digest"),
        _NOT_BELOW_FLOOR,
    ),
    _check(
        "trust file of last month",
        "D.attack_trust_file_of_last_month",
        _NOT_BELOW_FLOOR,
    ),
    _check(
        "missing trust file",
        "D.attack_missing_trust_file_is_never_rebuilt",
        drop_operand(f"{_STORE}:TrustStore.provision", "role_versions"),
    ),
    _check(
        "key compromise below the threshold",
        "M.attack_key_compromise_below_the_threshold",
        returns(f"{_PAYLOAD}:VerificationResult.verified", new="len(self.signed) >= 1"),
    ),
    _check(
        "key compromise: a revoked key",
        "M.a_newer_root_is_kept_even_when_the_rest_of_the_refresh_fails",
        drop(f"{_RESOLVE}:refresh", "keep_root"),
    ),
    _check(
        "key compromise: new root signed by one generation",
        "M.attack_new_root_signed_only_by_new_keys",
        arguments(f"{_TUF}:TrustedMetadataSet.update_root", "Root", "root", of="_load_data(..., ..., None)"),
    ),
    _check(
        "key compromise: new root that is not signed by itself",
        "M.attack_new_root_signed_only_by_old_keys",
        drop(f"{_TUF}:TrustedMetadataSet.update_root", "new_root", "verify_delegate"),
    ),
    _check(
        "one key counted twice: two signatures",
        "M.attack_one_key_counted_twice_by_two_signatures",
        drop_operand(f"{_KEYS}:check_metadata", "set", "signers"),
        never("tuf.api.metadata:Metadata.from_dict", "keyid", "signatures"),
    ),
    _check(
        "one key counted twice: two names",
        "M.attack_one_key_counted_twice_under_two_names",
        never(f"{_KEYS}:_check_keys", "public", "seen"),
    ),
    _check(
        "wrong hash algorithm, missing digest",
        "M.attack_missing_digest_is_not_unchecked",
        let_through(
            "contract.trust.targets_index:TargetsIndex.entry",
            "hashes",
            by='if not target.hashes:\n    return Entry(check_digest("0" * 64), target.length)',
        ),
    ),
    _check(
        "missing digest in the manifest",
        "B.every_fault_is_refused_with_its_reason",
        optional("contract.bundle.manifest:FileEntry", "sha256", default="''"),
    ),
    _check(
        "wrong size",
        "M.attack_manifest_of_the_wrong_size",
        never(f"{_RESOLVE}:fetch_manifest", "stored", "size"),
    ),
    _check(
        "wrong size of a file",
        "I.tampering_is_found",
        never("contract.bundle.verifier:find_listing_faults", "st_size"),
        never("contract.bundle.verifier:check_file", "file", "size"),
    ),
    _check(
        "chunks that do not add up",
        "B.every_fault_is_refused_with_its_reason",
        never("contract.bundle.manifest:parse_manifest", "sum", "chunks"),
    ),
    _check(
        "signature not 64 bytes",
        "M.attack_signature_tampering K.property_arbitrary_signatures_are_refused_or_well_formed",
        let_through(f"{_KEYS}:check_signature", "_HEX_SIGNATURE", by="return"),
    ),
    _check(
        "small-order public key",
        "K.attack_small_order_public_key K.attack_root_with_a_key_that_does_not_count",
        never(f"{_KEYS}:check_public_key", "point", "0", "1"),
    ),
    _check(
        "public key that is not canonical",
        "K.attack_public_key_that_is_no_point",
        value(f"{_KEYS}:check_public_key", "_recover_x", new="_recover_x(y % _P)"),
    ),
    _check(
        "non-canonical signature",
        "K.attack_signature_that_is_not_canonical",
        never(f"{_KEYS}:check_signature", "_ORDER"),
    ),
    _check(
        "other key types",
        "K.attack_root_with_a_key_that_does_not_count",
        condition(f"{_KEYS}:_check_keys", "keytype", "scheme", new="not isinstance(public, str)"),
    ),
    _check(
        "delegations",
        "M.attack_delegation_is_refused",
        never(f"{_KEYS}:check_metadata", "delegations", "isinstance"),
    ),
    # Documents and names.
    _check(
        "duplicate JSON keys",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason M.attack_json_that_two_readers_read_differently",
        never(f"{_JSON}:_parse.unique", "pairs"),
    ),
    _check(
        "NaN",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason M.attack_json_that_two_readers_read_differently",
        drop_keyword(f"{_JSON}:_parse", "parse_constant"),
    ),
    _check(
        "infinite numbers",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason",
        condition(f"{_JSON}:_parse.number", "isfinite", new="(value := float(digits)) is None"),
    ),
    _check(
        "10 MB of nesting",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason S.ten_megabytes_of_nesting_end_quickly_and_by_reason",
        drop(f"{_JSON}:_parse", "_check_depth"),
    ),
    _check(
        "documents over their bound",
        "S.a_document_over_its_bound_is_refused_unread",
        never(f"{_JSON}:_parse", "data", "max_bytes"),
    ),
    _check(
        "invalid UTF-8",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason M.attack_json_that_two_readers_read_differently",
        handler(
            f"{_JSON}:_parse",
            "UnicodeDecodeError",
            does='text, undecodable = data.decode("utf-8", "replace"), None',
        ),
    ),
    _check(
        "half a surrogate pair",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason S.whatever_is_read_can_be_written_again",
        call(f"{_JSON}:_parse", "search", "_SURROGATE_ESCAPE", becomes="None"),
    ),
    _check(
        "integers beyond 2^63",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason B.every_fault_is_refused_with_its_reason",
        drop_keyword(f"{_JSON}:_parse", "parse_int"),
    ),
    _check(
        "negative sizes",
        "B.every_fault_is_refused_with_its_reason",
        value("contract.bundle.manifest:Bytes", new="Annotated[int, Meta(le=2**53)]"),
    ),
    _check(
        "path traversal in a file's path",
        "N.paths_that_could_lead_elsewhere_are_refused",
        _DOTS,
    ),
    _check(
        "path traversal by a link",
        "N.a_link_out_of_the_root_is_refused",
        _BELOW,
    ),
    _check(
        "path traversal in a bundle's name",
        "N.unsafe_bundle_names_are_refused M.attack_names_are_refused_before_anything_is_fetched B.every_fault_is_refused_with_its_reason",
        never(f"{_NAMES}:check_bundle_name", "_NAME", "_WINDOWS_RESERVED"),
    ),
    _check(
        "path traversal in a version",
        "N.versions_that_are_not_semver_are_refused",
        never(f"{_NAMES}:check_version", "_SEMVER"),
    ),
    _check(
        "path traversal in external data",
        "O.external_data_stays_inside_the_bundle O.external_data_hidden_in_an_attribute_or_subgraph_is_found",
        call(f"{_RULES}:external_path", "check_path", "location", becomes="location"),
        let_through(f"{_RULES}:check_tensor", "path", "files", "NotIn", by="return"),
    ),
    _check(
        "path traversal in genai_config.json",
        "G.what_is_not_on_the_list_is_refused",
        body("contract.bundle.genai_rules:ConfigWalk.file", new="return"),
    ),
    _check(
        "path traversal in what is asked of a source",
        "F.refuses_paths_that_could_lead_out",
        _DOTS,
        _SLASH,
        _BELOW,
    ),
    _check(
        "absolute paths",
        "N.paths_that_could_lead_elsewhere_are_refused",
        _SLASH,
        condition(f"{_NAMES}:check_path", "part", "..", new='part in (".", "..")'),
    ),
    _check(
        "control characters, backslashes, drive letters",
        "N.paths_that_could_lead_elsewhere_are_refused",
        drop_operand(f"{_NAMES}:check_path", "_FORBIDDEN"),
    ),
    _check(
        "Windows reserved names",
        "N.paths_that_could_lead_elsewhere_are_refused",
        never(f"{_NAMES}:check_path", "_WINDOWS_RESERVED"),
    ),
    _check(
        "case-folded twins",
        "N.twins_are_refused B.every_fault_is_refused_with_its_reason",
        value(f"{_NAMES}:check_paths_distinct", "casefold", new="path"),
    ),
    # .edgebundle files.
    _check(
        "links, devices, pipes in the tar",
        "T.attack_link_entries T.only_regular_files",
        never(f"{_TAR}:_describe", "kind", "0"),
    ),
    _check(
        "links by a pax header",
        "T.attack_sparse_pax_member_and_link_path",
        never(f"{_TAR}:_pax", "linkpath"),
    ),
    _check("a tar member outside the set", "T.attack_member_outside_the_set", _MEMBER),
    _check(
        "two members of one name",
        "T.attack_duplicate_member",
        never(f"{_TAR}:index_members", "name", "members"),
    ),
    _check(
        "a tar with a huge claimed size",
        "T.attack_huge_claimed_size T.attack_huge_claimed_size_in_a_pax_header",
        never(f"{_TAR}:index_members", "size", "total", "position"),
        never(f"{_TAR}:index_members", "header", "BLOCK", "Lt"),
        _SHORT,
    ),
    _check(
        "renaming by a global header",
        "T.attack_global_header_renames_members",
        never(f"{_TAR}:_read_extended", "kind", "found"),
    ),
    _check("truncated tar", "T.every_truncation_is_refused", _SHORT),
    _check(
        "bytes after the tar's end",
        "T.bytes_after_the_end_are_refused",
        never(f"{_TAR}:_check_end", "any", "rest"),
        never(f"{_TAR}:_check_end", "MAX_TRAILING_BYTES"),
    ),
    _check(
        "a sparse file beyond 4 GiB",
        "T.a_sparse_file_beyond_four_gigabytes_is_read_in_place",
        arguments(f"{_TAR}:index_members", of="Member(position & 0xFFFFFFFF, ...)"),
    ),
    _check(
        "special files in a directory",
        "R.attack_bundle_directory_that_is_not_what_it_lists",
        loop("contract.bundle.verifier:find_listing_faults", "special", over="()"),
    ),
    # Device.
    _check(
        "a file swapped between verification and use: before it",
        "V.attack_a_file_swapped_between_verification_and_use",
        instead(
            "agent.install.update.canary_run:CanaryRun.run_canary",
            "to_thread",
            "verify_bundle",
            do="from contract.bundle import verifier\n"
            "new = SealedBundle(verifier.VerifiedDirectory(verifier._GUARD, directory, digest, manifest))",
        ),
        _CHANGED_IN_BETWEEN,
    ),
    _check(
        "a file swapped between verification and use: during it",
        "V.attack_a_file_swapped_between_verification_and_use",
        _CHANGED_IN_BETWEEN,
    ),
    _check(
        "a file swapped between verification and use: while it loads",
        "V.attack_a_file_swapped_while_the_new_model_loads",
        drop("agent.install.update.activation:Activation.swap", "check_unchanged"),
    ),
    _check(
        "an active bundle's byte changed on disk later: while it serves",
        "V.attack_a_byte_of_the_active_bundle_changed_while_it_serves",
        value("agent.install.trust.refresh:TrustRefresh._warnings", "_damage", new="None"),
    ),
    _check(
        "an active bundle's byte changed on disk later: found at start and by verify",
        "I.tampering_is_found C.a_damaged_active_bundle_is_not_served_but_mended",
        never("contract.bundle.verifier:check_file", "hexdigest", "sha256"),
    ),
    _check(
        "a revoked bundle already installed: reported",
        "V.a_revoked_bundle_is_reported_and_serves_on_where_policy_keeps_it",
        never("agent.install.trust.refresh:TrustRefresh._warnings", "reference", "revoked"),
    ),
    _check(
        "a revoked bundle already installed: replaced",
        "V.a_revoked_bundle_is_replaced_by_the_one_before_it V.with_nothing_acceptable_to_go_back_to_nothing_is_served",
        returns("agent.install.trust.revocation:_replaces", new="False"),
    ),
    _check(
        "a revoked bundle already installed: kept where policy says so",
        "V.a_revoked_bundle_is_reported_and_serves_on_where_policy_keeps_it",
        returns("agent.install.trust.revocation:_replaces", new="True"),
    ),
    _check(
        "desired names an unlisted bundle",
        "C.a_document_that_cannot_be_followed_is_reported I.an_unlisted_bundle_is_refused",
        let_through(
            "contract.trust.targets_index:TargetsIndex.entry",
            "target",
            "None",
            by="target = next(iter(self._targets.targets.values()))",
        ),
    ),
    _check(
        "desired names a source that is not configured",
        "C.a_document_that_cannot_be_followed_is_reported",
        let_through("agent.install.desired:read_desired", "location", "None", by="location = desired.source"),
    ),
    _check(
        "desired with a looser policy",
        "C.a_document_that_cannot_be_followed_is_reported E.a_looser_policy_is_refused",
        never("agent.install.settings:tighten", "overlap", "drain"),
    ),
    _check(
        "desired floods",
        "C.a_flood_of_documents_ends_with_the_last",
        value("agent.install.desired_intake:DEBOUNCE_SECONDS", new="60"),
    ),
    _check(
        "desired flapping",
        "C.swaps_per_hour_are_limited",
        never("agent.install.update.activation:Activation.examine", "limit", "recent"),
    ),
    _check(
        "desired names what failed here",
        "C.a_candidate_that_does_not_hold_is_rolled_back_and_not_tried_again",
        drop(f"{_PIPELINE}:DownloadPipeline._check", "_check_quarantine"),
    ),
    _check(
        "a flood that washes the audit log out",
        "V.a_flood_of_bad_documents_does_not_wash_the_log_out A.refusals_are_rationed_and_the_next_entry_says_how_many_were_not_written",
        returns("agent.state.audit:AuditRateLimiter.suppressed", new="self._suppressed"),
    ),
    _check(
        "a clock years ahead once",
        "D.only_a_synchronised_clock_raises_the_floor D.attack_clock_years_ahead_once_then_right_again",
        always("contract.trust.clock:effective_time", "synchronised"),
    ),
    _check(
        "a clock at 1970",
        "D.only_a_synchronised_clock_raises_the_floor D.attack_clock_at_1970_accepts_nothing_expired",
        returns("contract.trust.clock:effective_time", new="now"),
    ),
    _check(
        "a stolen timestamp key moves clocks",
        "D.attack_a_stolen_timestamp_key_cannot_move_the_clock",
        loop(f"{_RESOLVE}:_raise_clock", "root", "targets", over="(trusted.root, trusted.targets, trusted.timestamp)"),
    ),
    _check(
        "a manifest taken for a trusted one",
        "D.attack_only_resolve_makes_a_trusted_manifest",
        never("contract.trust.verified:TrustedManifest.__init__", "_GUARD"),
    ),
    _check(
        "power cut between trust and its floor",
        "D.power_may_be_cut_at_any_instant",
        swap(f"{_STORE}:TrustStore._write", "write_file", "raise_role_versions"),
    ),
    _check(
        "configuration that loads code",
        "G.what_is_not_on_the_list_is_refused I.a_configuration_that_would_load_code_is_refused_and_not_left_behind",
        drop("contract.bundle.genai_config:read_genai_config", "CONFIG_RULE"),
    ),
    _check(
        "operators that are not built in",
        "O.operators_that_are_not_built_in_are_refused",
        never(f"{_RULES}:check_graph", "ALLOWED_DOMAINS"),
        never(f"{_RULES}:check_graph", "REFUSED_OPERATORS"),
    ),
    _check(
        "external data beyond its file's bounds",
        "O.external_data_stays_inside_the_bundle",
        never(f"{_RULES}:check_tensor", "offset", "needed", "files"),
    ),
    _check(
        "a device of another architecture",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        never(f"{_FACTS}:check_requires", "arch"),
    ),
    _check(
        "instruction sets that are not there",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        never(f"{_FACTS}:check_requires", "isa_any"),
    ),
    _check(
        "too little RAM",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        never(f"{_FACTS}:check_requires", "min_ram_bytes"),
    ),
    _check(
        "too little disk",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        never(f"{_FACTS}:check_requires", "min_disk_bytes"),
    ),
    _check(
        "another runtime or agent version",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        never(f"{_FACTS}:check_requires", "satisfies"),
    ),
    _check(
        "an unknown requirement",
        "I.a_requirement_that_is_not_understood_is_refused B.every_fault_is_refused_with_its_reason",
        drop("contract.bundle.manifest:parse_manifest", "_refuse_unknown_requirements"),
        let_through(f"{_FACTS}:satisfies", "match", "None", by="continue"),
    ),
    _check(
        "a graph for another execution provider",
        "I.a_bundle_for_a_provider_that_does_not_run_here_is_refused",
        drop(f"{_PIPELINE}:DownloadPipeline._check", "check_provider"),
    ),
    # Chat templates.
    _check(
        "a chat template without end",
        "J.a_template_without_end_is_ended",
        drop("contract.chat.limits:run_bounded", "setitimer", "AGAIN_SECONDS"),
    ),
    _check(
        "a chat template that looks for a way out",
        "J.a_hostile_template_gets_out_nowhere",
        base("contract.chat.environment:_Environment", new="jinja2.Environment"),
    ),
    # The plain TUF client.
    _check(
        "TUF client: an emptied cache",
        "U.an_emptied_cache_is_refused_and_not_passed_over",
        drop("tests.tuf_client.client:Client._updater", "check", "read_bytes"),
    ),
    _check(
        "TUF client: other key types",
        "U.other_key_types_are_admitted_only_with_any_key",
        never("tests.tuf_client.client:check", "any_key"),
        always("tests.tuf_client.client:Client.init", "_any_key"),
    ),
)
