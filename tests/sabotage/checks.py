"""The table: which lines stop which attack, and which tests fail without them.

Several cuts in one row are layers that each stop the attack; the tests fail when all of them are gone. Where the
check is python-tuf's, it is taken out of python-tuf: our tests must notice if a new version of it stopped checking.
"""

# ruff: noqa: E501 - lines of source are quoted as they stand

from __future__ import annotations

from msgspec import Struct

from tests.sabotage.removal import Cut

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
    "Q": "tests/contract/mqtt/test_messages.py",
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
    cuts: tuple[Cut, ...]
    tests: tuple[str, ...]

    @property
    def hangs(self) -> bool:
        """Whether the tests never end without the check, rather than fail."""
        return self.attack in _HANGING


def _check(attack: str, tests: str, *cuts: tuple[str, str, str]) -> Check:
    named = [word.split(".", 1) for word in tests.split()]
    return Check(
        attack, tuple(Cut(*cut) for cut in cuts), tuple(f"{_HERE[where]}::test_{name}" for where, name in named)
    )


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
_UPDATING = "contract.trust.refresh"
_RESOLVE = "contract.trust.resolve"
_STORE = "contract.trust.store"
_NAMES = "contract.identifiers"
_TAR = "contract.source.tar_index"
_PACE = "contract.source.throughput_guard"
_HTTP = "contract.source.http_session"
_RULES = "contract.onnx.rules"
_VERIFIES = (_PAYLOAD, "        return len(self.signed) >= self.threshold", "        return True")
_STALE = (_PAYLOAD, "        return reference_time >= self.expires", "        return False")
_OLDER_TARGETS = (_TUF, "                if new_fileinfo.version < fileinfo.version:\n", "                if False:\n")
_BELOW_FLOOR = (
    _STORE,
    "        if fallen is not None:\n            raise BundleRefused(Reason.METADATA_ROLLBACK",
    "        if False:\n            raise BundleRefused(Reason.METADATA_ROLLBACK",
)
_MEMBER = (_TAR, "    if not is_repository_path(name):\n", "    if False:\n")

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
        (_RESOLVE, "if hashlib.sha256(stored).hexdigest() != entry.digest:", "if False:"),
    ),
    _check(
        "changed object",
        "I.a_changed_object_is_refused_and_nothing_of_it_kept",
        (
            "agent.install",
            "len(data) == chunk_slice.size and hashlib.sha256(data).hexdigest() == chunk_slice.sha256",
            "True",
        ),
        ("agent.install", " or self._read_back[entry.sha256] == entry.sha256:", " or True:"),
    ),
    _check(
        "endless data: a document",
        "M.attack_endless_data_in_every_document M.attack_endless_root",
        (_UPDATING, "self._source.read(path, min(max_length, _CAPS[role]))", "self._source.read(path, 2**60)"),
        (
            _UPDATING,
            "strict_json.loads(data, max_bytes=_CAPS[role], what=path)",
            "strict_json.loads(data, max_bytes=2**60, what=path)",
        ),
        (_RESOLVE, "source.read(path, entry.size)", "source.read(path, 2**60)"),
    ),
    _check(
        "endless data: a body over HTTP",
        "H.an_endless_body_is_refused",
        (
            "contract.source.http",
            "            if len(data) > max_bytes:\n                exchange.close()\n                raise too_large\n",
            "            if len(data) > 50_000_000:\n                break\n",
        ),
        ("contract.source.http", "min(PIECE_BYTES, max_bytes + 1 - len(data))", "PIECE_BYTES"),
        ("contract.source.http", "        if (response.raw.length or 0) > max_bytes:\n", "        if False:\n"),
    ),
    _check(
        "endless data: headers, interim answers, trailers",
        "H.endless_talk_around_a_body_ends",
        (_PACE, "        if self._allowance.left <= 0:\n", "        if False:\n"),
        (_PACE, "        if self._waited >= self._pace.window_seconds:\n", "        if False:\n"),
    ),
    _check(
        "endless data: roots",
        "M.attack_endless_roots_end",
        (_UPDATING, "MAX_ROOT_ROTATIONS = 256", "MAX_ROOT_ROTATIONS = 4096"),
    ),
    _check(
        "slow retrieval: stalling",
        "H.a_stalled_or_dripping_server_is_given_up_on",
        (
            _PACE,
            "self._connection.settimeout(self._pace.read_seconds)",
            "self._connection.settimeout(None)",
        ),
    ),
    _check(
        "slow retrieval: dripping",
        "H.a_dripping_stream_is_given_up_on_as_too_slow H.a_stalled_or_dripping_server_is_given_up_on",
        (_PACE, "if count and self._received < self._pace.min_bytes_per_second * self._waited:", "if False:"),
    ),
    _check(
        "slow retrieval: elsewhere",
        "X.another_source_takes_over_in_the_middle_of_a_range",
        ("agent.install", "                failed.append(error)\n", "                raise\n"),
    ),
    _check(
        "slow retrieval: later",
        "C.an_unavailable_source_is_tried_again",
        ("agent.install", '        if outcome.kind == "later":\n', '        if outcome.kind == "never":\n'),
    ),
    _check(
        "extraneous file: in a bundle directory",
        "R.attack_bundle_directory_that_is_not_what_it_lists",
        (
            "contract.bundle.verifier",
            "    for name in extra:\n",
            "    for name in ():\n",
        ),
    ),
    _check("extraneous file: in an .edgebundle", "T.attack_member_outside_the_set", _MEMBER),
    _check(
        "extraneous file: on the device",
        "I.tampering_is_found",
        ("contract.bundle.verifier", "    for name in extra:\n", "    for name in ():\n"),
    ),
    _check(
        "fast-forward: recovery",
        "M.attack_fast_forward_is_undone_by_rotating_the_keys",
        (_STORE, "return hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]", 'return "0" * 16'),
    ),
    _check(
        "fast-forward: beyond any reader",
        "M.attack_fast_forward_beyond_what_any_reader_holds S.ambiguous_or_hostile_documents_are_refused_with_their_reason",
        (
            _JSON,
            "if len(digits) > 20 or not -MAX_INTEGER - 1 <= (value := int(digits)) <= MAX_INTEGER:",
            "if (value := int(digits[:4000])) is None:",
        ),
    ),
    _check(
        "freeze: expired metadata",
        "M.attack_freeze M.attack_freeze_of_the_snapshot D.attack_clock_at_1970_accepts_nothing_expired",
        _STALE,
    ),
    _check(
        "freeze: by an old stick, beyond the grace",
        "D.grace_covers_timestamp_and_snapshot_of_a_tar_only",
        (_RESOLVE, "OFFLINE_GRACE = timedelta(days=30)", "OFFLINE_GRACE = timedelta(days=3000)"),
    ),
    _check(
        "freeze: grace for a server",
        "D.grace_covers_timestamp_and_snapshot_of_a_tar_only",
        (_RESOLVE, "if offline_grace and isinstance(source, TarSource) else", "if offline_grace else"),
    ),
    _check(
        "freeze: expired root and targets with grace",
        "M.attack_expired_root_and_targets_are_never_forgiven",
        (_UPDATING, "            if self._set[role].is_expired(self._at):\n", "            if False:\n"),
    ),
    _check(
        "malicious mirror: incomplete",
        "M.an_incomplete_mirror_is_worth_another_try",
        (
            _UPDATING,
            '            return SourceUnavailable(f"{where} is not a complete repository: {error}")\n',
            "            pass\n",
        ),
    ),
    _check(
        "malicious mirror: ends a deployment by what it delivers",
        "W.whatever_is_sent_for_a_while_is_no_verdict_on_the_bundle",
        ("agent.install.download.mirrors", "if error.cause is Cause.DELIVERY:", "if False:"),
    ),
    _check(
        "malicious mirror: breaks off",
        "D.attack_source_that_breaks_off_leaves_trust_as_it_was",
        (
            _UPDATING,
            "        updater.refresh()\n",
            "        try:\n            updater.refresh()\n        except Exception:\n            (self._scratch / 'trusted.json').write_bytes(b'')\n            raise\n",
        ),
    ),
    _check(
        "malicious mirror: leaves the https that was configured",
        "H.tls_is_verified_by_default_and_never_left_by_redirect",
        (_HTTP, 'if address.scheme == "https" and not url.startswith("https:"):', "if False:"),
    ),
    _check(
        "malicious mirror: asks for another server's credentials",
        "H.credentials_go_to_the_configured_server_only",
        (
            _HTTP,
            "if access.authorization and address == first:",
            "if access.authorization:",
        ),
    ),
    _check(
        "malicious mirror: asks for another server's client certificate",
        "Y.a_client_certificate_is_shown_to_its_server_and_to_no_other",
        (_HTTP, "            special = ours and isinstance(", "            special = isinstance("),
    ),
    _check(
        "malicious mirror: redirects in circles",
        "H.follows_a_redirect_and_gives_up_on_a_circle",
        (_HTTP, "for _ in range(MAX_REDIRECTS + 1):", "while True:"),
    ),
    _check(
        "mix-and-match: by digests",
        "M.attack_mix_and_match_of_snapshot M.attack_mix_and_match_of_targets",
        (_TUF, "            snapshot_meta.verify_length_and_hashes(data)\n", "            pass\n"),
        (_TUF, "        meta.verify_length_and_hashes(data)\n", "        pass\n"),
        (_TUF, "        if self.snapshot.version != snapshot_meta.version:\n", "        if False:\n"),
        (_TUF, "        if version != meta.version:\n", "        if False:\n"),
    ),
    _check(
        "mix-and-match: by versions",
        "M.attack_mix_without_hashes",
        (_TUF, "        if version != meta.version:\n", "        if False:\n"),
    ),
    _check(
        "mix-and-match: a manifest of another bundle",
        "M.attack_manifest_that_names_another_bundle",
        (_RESOLVE, "if (manifest.name, manifest.version) != (name, version):", "if False:"),
    ),
    _check(
        "rollback of metadata: timestamp",
        "M.attack_metadata_rollback D.attack_older_directory_or_server_is_a_rollback",
        (_TUF, "            if new_timestamp.version < self.timestamp.version:\n", "            if False:\n"),
        (_TUF, "            if new_snapshot_meta.version < snapshot_meta.version:\n", "            if False:\n"),
        _OLDER_TARGETS,
        _BELOW_FLOOR,
    ),
    _check(
        "rollback of metadata: snapshot",
        "M.attack_rollback_of_the_snapshot_version",
        (_TUF, "            if new_snapshot_meta.version < snapshot_meta.version:\n", "            if False:\n"),
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
        (
            _TUF,
            "                if new_fileinfo is None:\n",
            "                if new_fileinfo is None:\n                    continue\n                if new_fileinfo is None:\n",
        ),
    ),
    _check(
        "rollback of a version: no longer listed",
        "D.attack_older_tar_with_a_bundle_delisted_since",
        (
            _UPDATING,
            '        if known is not None and document["signed"]["version"] < known.version:\n',
            "        if False:\n",
        ),
    ),
    _check(
        "rollback of a version: revoked",
        "M.attack_revoked_bundle D.attack_older_tar_with_a_bundle_revoked_since R.revoked_bundles_stay_revoked",
        ("contract.trust.targets_index", "        if reference in self.revoked:\n", "        if False:\n"),
    ),
    _check(
        "rollback of a version: published again with other contents",
        "R.a_published_version_cannot_be_replaced",
        (
            "packager.publish.repository",
            "            if known is not None and known.digest != bundle.digest:\n",
            "            if False:\n",
        ),
    ),
    _check(
        "rollback of the epoch",
        "I.an_epoch_below_the_committed_one_is_refused",
        ("agent.install", "    if manifest.security_epoch < floor:\n", "    if False:\n"),
    ),
    _check(
        "rollback of the epoch: by going back to a revoked bundle",
        "V.a_damaged_bundle_does_not_fall_back_to_a_revoked_one",
        ("agent.install", "                and previous.digest not in self._store.warning_store.revoked()\n", ""),
    ),
    _check(
        "emptied trust file with an old .edgebundle",
        "D.attack_emptied_trust_file_with_an_old_stick D.attack_truncated_trust_file",
        (_STORE, '            raise _lost(f"{path} is damaged") from error\n', "            raise\n"),
    ),
    _check(
        "changed trust file",
        "D.attack_one_role_taken_out_of_the_trust_file",
        (
            _STORE,
            "            if stored.sha256 != _digest(stored.anchor, stored.metadata):\n",
            "            if False:\n",
        ),
        (
            _STORE,
            "            fallen = fallen_below(files, floor)\n        except",
            "            fallen = None\n        except",
        ),
    ),
    _check(
        "trust file of last month",
        "D.attack_trust_file_of_last_month",
        (
            _STORE,
            "            fallen = fallen_below(files, floor)\n        except",
            "            fallen = None\n        except",
        ),
    ),
    _check(
        "missing trust file",
        "D.attack_missing_trust_file_is_never_rebuilt",
        (
            _STORE,
            "        if (self._directory / FILE).exists() or floor.role_versions():\n",
            "        if (self._directory / FILE).exists():\n",
        ),
    ),
    _check(
        "key compromise below the threshold",
        "M.attack_key_compromise_below_the_threshold",
        (_PAYLOAD, "        return len(self.signed) >= self.threshold", "        return len(self.signed) >= 1"),
    ),
    _check(
        "key compromise: a revoked key",
        "M.a_newer_root_is_kept_even_when_the_rest_of_the_refresh_fails",
        (_RESOLVE, "            store.keep_root(run.newer_root, floor)\n", "            pass\n"),
    ),
    _check(
        "key compromise: new root signed by one generation",
        "M.attack_new_root_signed_only_by_new_keys",
        (
            _TUF,
            "            Root, data, self.root\n        )\n        if new_root.version",
            "            Root, data, None\n        )\n        if new_root.version",
        ),
    ),
    _check(
        "key compromise: new root that is not signed by itself",
        "M.attack_new_root_signed_only_by_old_keys",
        (
            _TUF,
            "        # Verify that new root is signed by itself\n        new_root.verify_delegate(Root.type, new_root_bytes, new_root_signatures)\n",
            "",
        ),
    ),
    _check(
        "one key counted twice: two signatures",
        "M.attack_one_key_counted_twice_by_two_signatures",
        (_KEYS, " or len(set(signers)) != len(signers):", ":"),
        ("tuf.api.metadata", "            if sig.keyid in signatures:\n", "            if False:\n"),
    ),
    _check(
        "one key counted twice: two names",
        "M.attack_one_key_counted_twice_under_two_names",
        (_KEYS, "        if public in seen:\n", "        if False:\n"),
    ),
    _check(
        "wrong hash algorithm, missing digest",
        "M.attack_missing_digest_is_not_unchecked",
        (
            "contract.trust.targets_index",
            '        if set(target.hashes) != {"sha256"}:\n',
            '        if not target.hashes:\n            return Entry(check_digest("0" * 64), target.length)\n        if False:\n',
        ),
    ),
    _check(
        "missing digest in the manifest",
        "B.every_fault_is_refused_with_its_reason",
        (
            "contract.bundle.manifest",
            "    path: str\n    size: Bytes\n    sha256: Sha256\n    role: Role\n    chunks: list[Chunk]\n",
            '    path: str\n    size: Bytes\n    role: Role\n    chunks: list[Chunk]\n    sha256: str = ""\n',
        ),
    ),
    _check(
        "wrong size",
        "M.attack_manifest_of_the_wrong_size",
        (_RESOLVE, "    if len(stored) != entry.size:\n", "    if False:\n"),
    ),
    _check(
        "wrong size of a file",
        "I.tampering_is_found",
        (
            "contract.bundle.verifier",
            "        if name in found and name not in special and found[name].st_size != entry.size:\n",
            "        if False:\n",
        ),
        ("contract.bundle.verifier", "        if file.size != entry.size:\n", "        if False:\n"),
    ),
    _check(
        "chunks that do not add up",
        "B.every_fault_is_refused_with_its_reason",
        (
            "contract.bundle.manifest",
            "        if sum(chunk.size for chunk in entry.chunks) != entry.size:\n",
            "        if False:\n",
        ),
    ),
    _check(
        "signature not 64 bytes",
        "M.attack_signature_tampering K.property_arbitrary_signatures_are_refused_or_well_formed",
        (
            _KEYS,
            "    if not isinstance(signature, str) or _HEX_SIGNATURE.fullmatch(signature) is None:\n",
            "    if not isinstance(signature, str):\n        return\n    if False:\n",
        ),
    ),
    _check(
        "small-order public key",
        "K.attack_small_order_public_key K.attack_root_with_a_key_that_does_not_count",
        (_KEYS, "    if point == (0, 1):\n", "    if False:\n"),
    ),
    _check(
        "public key that is not canonical",
        "K.attack_public_key_that_is_no_point",
        (_KEYS, "    x = _recover_x(y) if y < _P else None\n", "    x = _recover_x(y % _P)\n"),
    ),
    _check(
        "non-canonical signature",
        "K.attack_signature_that_is_not_canonical",
        (_KEYS, '    if int.from_bytes(bytes.fromhex(signature)[32:], "little") >= _ORDER:\n', "    if False:\n"),
    ),
    _check(
        "other key types",
        "K.attack_root_with_a_key_that_does_not_count",
        (_KEYS, ' or key.get("keytype") != "ed25519" or key.get("scheme") != "ed25519":', ":"),
    ),
    _check(
        "delegations",
        "M.attack_delegation_is_refused",
        (_KEYS, '        if not delegations or not isinstance(signed["delegations"], dict):\n', "        if False:\n"),
    ),
    # Documents and names.
    _check(
        "duplicate JSON keys",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason M.attack_json_that_two_readers_read_differently",
        (_JSON, "if len(found) < len(pairs):", "if False:"),
    ),
    _check(
        "NaN",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason M.attack_json_that_two_readers_read_differently",
        (_JSON, "parse_constant=constant, ", ""),
    ),
    _check(
        "infinite numbers",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason",
        (
            _JSON,
            "        if not math.isfinite(value := float(digits)):\n",
            "        if (value := float(digits)) is None:\n",
        ),
    ),
    _check(
        "10 MB of nesting",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason S.ten_megabytes_of_nesting_end_quickly_and_by_reason",
        (_JSON, "    _check_depth(data, max_depth, what)\n", ""),
    ),
    _check(
        "documents over their bound",
        "S.a_document_over_its_bound_is_refused_unread",
        (_JSON, "    if len(data) > max_bytes:\n", "    if False:\n"),
    ),
    _check(
        "invalid UTF-8",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason M.attack_json_that_two_readers_read_differently",
        (_JSON, 'data.decode("utf-8")', 'data.decode("utf-8", "replace")'),
    ),
    _check(
        "half a surrogate pair",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason S.whatever_is_read_can_be_written_again",
        (_JSON, "_SURROGATE_ESCAPE.search(text) is not None", "False"),
    ),
    _check(
        "integers beyond 2^63",
        "S.ambiguous_or_hostile_documents_are_refused_with_their_reason B.every_fault_is_refused_with_its_reason",
        (_JSON, "parse_int=integer, ", ""),
    ),
    _check(
        "negative sizes",
        "B.every_fault_is_refused_with_its_reason",
        (
            "contract.bundle.manifest",
            "Bytes = Annotated[int, Meta(ge=0, le=2**53)]",
            "Bytes = Annotated[int, Meta(le=2**53)]",
        ),
    ),
    _check(
        "path traversal in a file's path",
        "N.paths_that_could_lead_elsewhere_are_refused",
        (_NAMES, '        if part in ("", ".", ".."):\n', "        if False:\n"),
    ),
    _check(
        "path traversal by a link",
        "N.a_link_out_of_the_root_is_refused",
        (_NAMES, "    if not target.is_relative_to(base):\n", "    if False:\n"),
    ),
    _check(
        "path traversal in a bundle's name",
        "N.unsafe_bundle_names_are_refused M.attack_names_are_refused_before_anything_is_fetched B.every_fault_is_refused_with_its_reason",
        (_NAMES, 'if _NAME.fullmatch(text) is None or ".." in text or _WINDOWS_RESERVED.fullmatch(text):', "if False:"),
    ),
    _check(
        "path traversal in a version",
        "N.versions_that_are_not_semver_are_refused",
        (_NAMES, "if len(text) > 64 or _SEMVER.fullmatch(text) is None:", "if False:"),
    ),
    _check(
        "path traversal in external data",
        "O.external_data_stays_inside_the_bundle O.external_data_hidden_in_an_attribute_or_subgraph_is_found",
        (_RULES, "check_path(location))", "location)"),
        (_RULES, "    if path not in files:\n", "    if path not in files:\n        return\n    if False:\n"),
    ),
    _check(
        "path traversal in genai_config.json",
        "G.what_is_not_on_the_list_is_refused",
        (
            "contract.bundle.genai_rules",
            "    def file(self, path: str, value: Any) -> None:\n",
            "    def file(self, path: str, value: Any) -> None:\n        return\n",
        ),
    ),
    _check(
        "path traversal in what is asked of a source",
        "F.refuses_paths_that_could_lead_out",
        (_NAMES, '        if part in ("", ".", ".."):\n', "        if False:\n"),
        (_NAMES, '    if text.startswith("/"):\n', "    if False:\n"),
        (_NAMES, "    if not target.is_relative_to(base):\n", "    if False:\n"),
    ),
    _check(
        "absolute paths",
        "N.paths_that_could_lead_elsewhere_are_refused",
        (_NAMES, '    if text.startswith("/"):\n', "    if False:\n"),
        (_NAMES, '        if part in ("", ".", ".."):\n', '        if part in (".", ".."):\n'),
    ),
    _check(
        "control characters, backslashes, drive letters",
        "N.paths_that_could_lead_elsewhere_are_refused",
        (_NAMES, "    if _FORBIDDEN.search(text) or ", "    if "),
    ),
    _check(
        "Windows reserved names",
        "N.paths_that_could_lead_elsewhere_are_refused",
        (_NAMES, "        if _WINDOWS_RESERVED.fullmatch(part):\n", "        if False:\n"),
    ),
    _check(
        "case-folded twins",
        "N.twins_are_refused B.every_fault_is_refused_with_its_reason",
        (_NAMES, "        folded = path.casefold()\n", "        folded = path\n"),
    ),
    # .edgebundle files.
    _check(
        "links, devices, pipes in the tar",
        "T.attack_link_entries T.only_regular_files",
        (_TAR, '    if kind not in (b"0", b"\\0"):\n', "    if False:\n"),
    ),
    _check(
        "links by a pax header",
        "T.attack_sparse_pax_member_and_link_path",
        (
            _TAR,
            '        elif key.startswith((b"GNU.sparse", b"SCHILY.realsize", b"linkpath", b"hdrcharset")):\n',
            "        elif False:\n",
        ),
    ),
    _check("a tar member outside the set", "T.attack_member_outside_the_set", _MEMBER),
    _check(
        "two members of one name",
        "T.attack_duplicate_member",
        (_TAR, "            if name in members:\n", "            if False:\n"),
    ),
    _check(
        "a tar with a huge claimed size",
        "T.attack_huge_claimed_size T.attack_huge_claimed_size_in_a_pax_header",
        (_TAR, "            if size > total - position:\n", "            if False:\n"),
        (_TAR, "        if len(header) < BLOCK:\n", "        if False:\n"),
        (_TAR, "    if len(rest) < BLOCK:\n", "    if False:\n"),
    ),
    _check(
        "renaming by a global header",
        "T.attack_global_header_renames_members",
        (_TAR, '    if kind == b"g" and found:\n', "    if False:\n"),
    ),
    _check("truncated tar", "T.every_truncation_is_refused", (_TAR, "    if len(rest) < BLOCK:\n", "    if False:\n")),
    _check(
        "bytes after the tar's end",
        "T.bytes_after_the_end_are_refused",
        (_TAR, "    if any(rest):\n", "    if False:\n"),
        (_TAR, "    if total - position > MAX_TRAILING_BYTES:\n", "    if False:\n"),
    ),
    _check(
        "a sparse file beyond 4 GiB",
        "T.a_sparse_file_beyond_four_gigabytes_is_read_in_place",
        (
            _TAR,
            "            members[name] = Member(position, size)\n",
            "            members[name] = Member(position & 0xFFFFFFFF, size)\n",
        ),
    ),
    _check(
        "special files in a directory",
        "R.attack_bundle_directory_that_is_not_what_it_lists",
        (
            "contract.bundle.verifier",
            "    for name in special:\n",
            "    for name in ():\n",
        ),
    ),
    # Device.
    _check(
        "a file swapped between verification and use: before it",
        "V.attack_a_file_swapped_between_verification_and_use",
        (
            "agent.install",
            "        new = await asyncio.to_thread(verify_bundle, directory, digest)\n",
            "        from contract.bundle import verifier\n"
            "        new = SealedBundle(verifier.VerifiedDirectory(verifier._GUARD, directory, digest, manifest))\n",
        ),
        ("agent.install", "            check_unchanged(directory, manifest, stat_fingerprint)\n", ""),
    ),
    _check(
        "a file swapped between verification and use: during it",
        "V.attack_a_file_swapped_between_verification_and_use",
        ("agent.install", "            check_unchanged(directory, manifest, stat_fingerprint)\n", ""),
    ),
    _check(
        "a file swapped between verification and use: while it loads",
        "V.attack_a_file_swapped_while_the_new_model_loads",
        (
            "agent.install",
            "self._serving.swap(tried.loaded, mode)\n            tried.check_unchanged()",
            "self._serving.swap(tried.loaded, mode)",
        ),
    ),
    _check(
        "an active bundle's byte changed on disk later: while it serves",
        "V.attack_a_byte_of_the_active_bundle_changed_while_it_serves",
        ("agent.install", "        damage = self._damage()\n", "        damage = None\n"),
    ),
    _check(
        "an active bundle's byte changed on disk later: found at start and by verify",
        "I.tampering_is_found C.a_damaged_active_bundle_is_not_served_but_mended",
        ("contract.bundle.verifier", "    if digest.hexdigest() != entry.sha256:\n", "    if False:\n"),
    ),
    _check(
        "a revoked bundle already installed: reported",
        "V.a_revoked_bundle_is_reported_and_serves_on_where_policy_keeps_it",
        ("agent.install", "                if bundle.reference in revoked:\n", "                if False:\n"),
    ),
    _check(
        "a revoked bundle already installed: replaced",
        "V.a_revoked_bundle_is_replaced_by_the_one_before_it V.with_nothing_acceptable_to_go_back_to_nothing_is_served",
        ("agent.install", '    return policy.on_revoked == "replace"\n', "    return False\n"),
    ),
    _check(
        "a revoked bundle already installed: kept where policy says so",
        "V.a_revoked_bundle_is_reported_and_serves_on_where_policy_keeps_it",
        ("agent.install", '    return policy.on_revoked == "replace"\n', "    return True\n"),
    ),
    _check(
        "desired names an unlisted bundle",
        "C.a_document_that_cannot_be_followed_is_reported I.an_unlisted_bundle_is_refused",
        (
            "contract.trust.targets_index",
            "        if target is None:\n",
            "        if target is None:\n            target = next(iter(self._targets.targets.values()))\n        if False:\n",
        ),
    ),
    _check(
        "desired names a source that is not configured",
        "C.a_document_that_cannot_be_followed_is_reported",
        (
            "agent.install",
            "        if location is None:\n",
            "        if location is None:\n            location = desired.source\n        if False:\n",
        ),
    ),
    _check(
        "desired with a looser policy",
        "C.a_document_that_cannot_be_followed_is_reported E.a_looser_policy_is_refused",
        (
            "agent.install",
            '        if policy.swap == "overlap" and settings.swap == "drain":\n',
            "        if False:\n",
        ),
    ),
    _check(
        "desired floods",
        "C.a_flood_of_documents_ends_with_the_last",
        ("agent.install", "DEBOUNCE_SECONDS = 0.2", "DEBOUNCE_SECONDS = 60"),
    ),
    _check(
        "desired flapping",
        "C.swaps_per_hour_are_limited",
        ("agent.install", "            if limit and len(recent) >= limit:\n", "            if False:\n"),
    ),
    _check(
        "desired names what failed here",
        "C.a_candidate_that_does_not_hold_is_rolled_back_and_not_tried_again",
        ("agent.install", "        self._check_quarantine(trusted)\n", ""),
    ),
    _check(
        "a flood that washes the audit log out",
        "V.a_flood_of_bad_documents_does_not_wash_the_log_out A.refusals_are_rationed_and_the_next_entry_says_how_many_were_not_written",
        (
            "agent.state.audit",
            "        return self._suppressed if self._left >= 1 else None\n",
            "        return self._unsaid\n",
        ),
    ),
    _check(
        "a clock years ahead once",
        "D.only_a_synchronised_clock_raises_the_floor D.attack_clock_years_ahead_once_then_right_again",
        ("contract.trust.clock", "    if synchronised():\n", "    if True:\n"),
    ),
    _check(
        "a clock at 1970",
        "D.only_a_synchronised_clock_raises_the_floor D.attack_clock_at_1970_accepts_nothing_expired",
        (
            "contract.trust.clock",
            "    return max(now, datetime.fromtimestamp(max(EARLIEST, floor.clock_floor()), UTC))\n",
            "    return now\n",
        ),
    ),
    _check(
        "a stolen timestamp key moves clocks",
        "D.attack_a_stolen_timestamp_key_cannot_move_the_clock",
        (
            _RESOLVE,
            "    for signed in (trusted.root, trusted.targets):\n",
            "    for signed in (trusted.root, trusted.targets, trusted.timestamp):\n",
        ),
    ),
    _check(
        "a manifest taken for a trusted one",
        "D.attack_only_resolve_makes_a_trusted_manifest",
        ("contract.trust.verified", "        if guard is not _GUARD:\n", "        if False:\n"),
    ),
    _check(
        "power cut between trust and its floor",
        "D.power_may_be_cut_at_any_instant",
        (
            _STORE,
            "        self._disk.write_file(self._directory / FILE, json.dumps(document).encode(), 0o600)\n        floor.raise_role_versions(role_versions(files))\n",
            "        floor.raise_role_versions(role_versions(files))\n        self._disk.write_file(self._directory / FILE, json.dumps(document).encode(), 0o600)\n",
        ),
    ),
    _check(
        "configuration that loads code",
        "G.what_is_not_on_the_list_is_refused I.a_configuration_that_would_load_code_is_refused_and_not_left_behind",
        ("contract.bundle.genai_config", '    CONFIG_RULE(walk, "", document)\n', ""),
    ),
    _check(
        "operators that are not built in",
        "O.operators_that_are_not_built_in_are_refused",
        (_RULES, "        if node.domain not in ALLOWED_DOMAINS:\n", "        if False:\n"),
        (_RULES, "        if node.op_type in REFUSED_OPERATORS:\n", "        if False:\n"),
    ),
    _check(
        "external data beyond its file's bounds",
        "O.external_data_stays_inside_the_bundle",
        (_RULES, "    if external.offset + needed > files[path]:\n", "    if False:\n"),
    ),
    _check(
        "a device of another architecture",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        ("agent.host.facts", "    if host.arch not in requires.arch:\n", "    if False:\n"),
    ),
    _check(
        "instruction sets that are not there",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        (
            "agent.host.facts",
            "    if requires.isa_any and not host.isa.intersection(requires.isa_any):\n",
            "    if False:\n",
        ),
    ),
    _check(
        "too little RAM",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        ("agent.host.facts", "    if requires.min_ram_bytes > host.ram_bytes:\n", "    if False:\n"),
    ),
    _check(
        "too little disk",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        ("agent.host.facts", "    if requires.min_disk_bytes > room:\n", "    if False:\n"),
    ),
    _check(
        "another runtime or agent version",
        "I.what_the_device_lacks_is_refused_before_anything_is_fetched P.what_is_lacking_is_named",
        ("agent.host.facts", "        if not satisfies(installed, bounds):\n", "        if False:\n"),
    ),
    _check(
        "an unknown requirement",
        "I.a_requirement_that_is_not_understood_is_refused B.every_fault_is_refused_with_its_reason",
        ("contract.bundle.manifest", "    _refuse_unknown_requirements(document)\n", ""),
        (
            "agent.host.facts",
            "        if match is None:\n",
            "        if match is None:\n            continue\n        if False:\n",
        ),
    ),
    _check(
        "a graph for another execution provider",
        "I.a_bundle_for_a_provider_that_does_not_run_here_is_refused",
        ("agent.install", "        check_provider(manifest)\n", ""),
    ),
    # Chat templates.
    _check(
        "a chat template without end",
        "J.a_template_without_end_is_ended",
        (
            "contract.chat.limits",
            "            signal.setitimer(signal.ITIMER_PROF, max(allowance.seconds, 1e-6), AGAIN_SECONDS)\n",
            "",
        ),
    ),
    _check(
        "a chat template that looks for a way out",
        "J.a_hostile_template_gets_out_nowhere",
        (
            "contract.chat.environment",
            "class _Environment(ImmutableSandboxedEnvironment):\n",
            "class _Environment(jinja2.Environment):\n",
        ),
    ),
    # The plain TUF client.
    _check(
        "TUF client: an emptied cache",
        "U.an_emptied_cache_is_refused_and_not_passed_over",
        (
            "tests.tuf_client.client",
            "                    check(path.read_bytes(), path.name, any_key=self._any_key)\n",
            "                    pass\n",
        ),
    ),
    _check(
        "TUF client: other key types",
        "U.other_key_types_are_admitted_only_with_any_key",
        ("tests.tuf_client.client", "    if not any_key:\n", "    if False:\n"),
        (
            "tests.tuf_client.client",
            "        if self._any_key:\n            check(root_json",
            "        if True:\n            check(root_json",
        ),
    ),
)
