"""Keys and signatures that libraries accept and we do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import BundleRefused
from contract.reasons import Reason
from contract.trust.key_policy import check_metadata, check_public_key, check_signature
from contract.trust.refresh import check_root
from contract.trust.signing import SigningKey
from tests.contract.trust.publisher import Device, Publisher, encode

P = 2**255 - 19
HONEST = SigningKey.generate().public

# The eight points of small order (x up to sign), and their encodings that are not canonical.
SMALL = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
NOT_CANONICAL = [
    P.to_bytes(32, "little").hex(),
    (P + 1).to_bytes(32, "little").hex(),
    (2**255 - 1).to_bytes(32, "little").hex(),
    (2**256 - 1).to_bytes(32, "little").hex(),
    (1 | 1 << 255).to_bytes(32, "little").hex(),
    (P - 1 | 1 << 255).to_bytes(32, "little").hex(),
]


@pytest.mark.parametrize("public", SMALL)
def test_attack_small_order_public_key(public: str) -> None:
    with pytest.raises(BundleRefused, match="small order") as caught:
        check_public_key(public)
    assert caught.value.reason is Reason.KEY_REFUSED


@pytest.mark.parametrize("public", [*NOT_CANONICAL, "", "00", "zz" * 32, "A" * 64, "02" + "00" * 31])
def test_attack_public_key_that_is_no_point(public: str) -> None:
    with pytest.raises(BundleRefused) as caught:
        check_public_key(public)
    assert caught.value.reason is Reason.KEY_REFUSED


def test_attack_signature_that_is_not_canonical() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    good = SigningKey.generate()._private.sign(b"x")
    check_signature(good.hex())
    second = int.from_bytes(good[32:], "little")
    for twin in (second + order, second + 2 * order, 2**256 - 1):
        with pytest.raises(BundleRefused) as caught:
            check_signature((good[:32] + twin.to_bytes(32, "little")).hex())
        assert caught.value.reason is Reason.SIGNATURE_INVALID


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_property_every_honest_key_and_signature_passes(seed: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(seed)
    check_public_key(private.public_key().public_bytes_raw().hex())
    check_signature(private.sign(seed).hex())


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.none(), st.integers(), st.text(max_size=200), st.binary(max_size=100).map(bytes.hex)))
def test_property_arbitrary_signatures_are_refused_or_well_formed(signature: object) -> None:
    try:
        check_signature(signature)
    except BundleRefused as error:
        assert error.reason is Reason.SIGNATURE_INVALID
    else:
        assert isinstance(signature, str)
        assert len(bytes.fromhex(signature)) == 64


@pytest.mark.parametrize(
    "key",
    [
        {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": SMALL[0]}},
        {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": NOT_CANONICAL[0]}},
        {"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": "-----BEGIN PUBLIC KEY-----"}},
        {"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": "-----BEGIN PUBLIC KEY-----"}},
        {"keytype": "ed25519", "scheme": "rsassa-pss-sha256", "keyval": {"public": HONEST}},
        {"keytype": "ecdsa", "scheme": "ed25519", "keyval": {"public": HONEST}},
        {"keytype": "ed25519", "scheme": "ed25519"},
        "text",
    ],
)
def test_attack_root_with_a_key_that_does_not_count(tmp_path: Path, key: object) -> None:
    publisher = Publisher()

    def smuggle(signed: dict[str, dict[str, object]]) -> None:
        signed["keys"]["x"] = key

    publisher.write_root(smuggle)
    with pytest.raises(BundleRefused) as caught:
        Device(tmp_path / "trust", publisher.root)
    assert caught.value.reason is Reason.KEY_REFUSED
    honest = Device(tmp_path / "trust2", publisher.files["metadata/1.root.json"])
    publisher.publish()
    assert honest.refused(publisher.source) is Reason.KEY_REFUSED


def test_attack_too_many_keys(tmp_path: Path) -> None:
    publisher = Publisher()
    publisher.keys["targets"] = [SigningKey.generate() for _ in range(70)]
    publisher.write_root()
    with pytest.raises(BundleRefused) as caught:
        Device(tmp_path / "trust", publisher.root)
    assert caught.value.reason is Reason.METADATA_INVALID


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a document."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_property_any_value_in_any_place_of_metadata_is_read_or_refused(data: st.DataObject) -> None:
    publisher = Publisher()
    publisher.publish()
    name = data.draw(st.sampled_from(sorted(path for path in publisher.files if path.startswith("metadata/"))))
    document = json.loads(publisher.files[name])
    place = data.draw(st.sampled_from(_places(document)))
    value = data.draw(JSON)
    if place:
        holder = document
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
    else:
        document = value
    try:
        check_metadata(document, name)
    except BundleRefused as error:
        assert error.reason in (Reason.METADATA_INVALID, Reason.KEY_REFUSED, Reason.SIGNATURE_INVALID)
    changed = encode(document)
    if name.endswith("1.root.json"):
        try:
            assert check_root(changed) == 1 or place
        except BundleRefused as error:
            assert error.reason is not None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_property_arbitrary_bytes_are_no_root(data: bytes) -> None:
    with pytest.raises(BundleRefused):
        check_root(data)
