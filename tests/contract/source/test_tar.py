"""Hostile and broken tars: refused with TAR_INVALID, never anything else, and never extracted."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import BundleRefused, SourceUnavailable
from contract.reasons import Reason
from contract.source.tar import TarSource
from contract.source.tar_index import Member, index_members

A = f"objects/{'a' * 64}"
B = f"objects/{'b' * 64}"


def member(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def write(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def index(data: bytes) -> dict[str, Member]:
    return index_members(lambda offset, length: data[offset : offset + length], len(data))


def refused(data: bytes) -> str:
    with pytest.raises(BundleRefused) as caught:
        index(data)
    assert caught.value.reason is Reason.TAR_INVALID
    return caught.value.message


def rewrite(data: bytes, start: int, field: bytes) -> bytes:
    """Change a header field of the first member and mend its checksum."""
    header = bytearray(data[:512])
    header[start : start + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_attack_link_entries(kind: bytes) -> None:
    assert "type" in refused(write(member(A, b"", type=kind, linkname="/etc/passwd")))


@pytest.mark.parametrize(
    "kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"S", b"7", b"Z"]
)
def test_only_regular_files(kind: bytes) -> None:
    assert "type" in refused(rewrite(write(member(A, b"")), 156, kind))


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "metadata/../../x", "metadata/x.json", "objects/short", "readme.txt", "./" + A, A + "/",
     f"manifests/CON/{'a' * 64}.1.0.0.json", f"manifests/a/{'a' * 64}.1.0.json", f"manifests/../{'a' * 64}.1.0.0.json",
     "metadata/0.root.json", "metadata/root.json", A.upper(), ""],
)  # fmt: skip
def test_attack_member_outside_the_set(name: str) -> None:
    refused(write(member(name or "\0")))


def test_attack_duplicate_member() -> None:
    assert "twice" in refused(write(member(A, b"one"), member(A, b"two")))


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\x80" + b"\0" * 4 + b"\x7f" + b"\xff" * 6, b"\xff" * 12],
    ids=["octal", "binary", "binary-2^63", "negative"],
)  # fmt: skip
def test_attack_huge_claimed_size(size: bytes) -> None:
    refused(rewrite(write(member(A)), 124, size))


def test_attack_huge_claimed_size_in_a_pax_header() -> None:
    refused(write(member(A, pax_headers={"size": "9" * 15})))
    refused(write(member(A, pax_headers={"size": "9" * 30})))
    refused(write(member(A, pax_headers={"size": "-1"})))


def test_attack_sparse_pax_member_and_link_path() -> None:
    refused(write(member(A, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.name": "x"})))
    refused(write(member(A, pax_headers={"linkpath": "/etc/passwd"})))


def test_attack_global_header_renames_members() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": A}) as tar:
        info, data = member(B)
        tar.addfile(info, io.BytesIO(data))
    refused(out.getvalue())


def test_a_global_comment_is_harmless() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "hello"}) as tar:
        info, data = member(B)
        tar.addfile(info, io.BytesIO(data))
    assert list(index(out.getvalue())) == [B]


def test_every_truncation_is_refused() -> None:
    data = write(member(A, b"1" * 700), member(B, b"2" * 10))
    end = 512 + 1024 + 512 + 512
    for length in [*range(0, end + 1024, 64), 1, end + 1]:
        refused(data[:length])
    assert set(index(data[: end + 1024])) == {A, B}


def test_bytes_after_the_end_are_refused() -> None:
    data = write(member(A))
    refused(data + b"x" * 512)
    refused(data + b"\0" * 2**21)
    refused(write(member(A)) + write(member(B)))


def test_too_many_members_are_refused() -> None:
    header, _ = member(A, b"")
    block = header.tobuf()
    chain = b"".join(tarfile.TarInfo(f"objects/{number:064x}").tobuf(tarfile.USTAR_FORMAT) for number in range(9000))
    assert len(block) == 512
    assert "more than" in refused(chain + b"\0" * 1024)


def test_a_sparse_file_beyond_four_gigabytes_is_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "big.edgebundle"
    size = 5 * 2**30
    info = tarfile.TarInfo(A)
    info.size = size
    tail = b"the end of a very long member"
    with path.open("wb") as file:
        head = info.tobuf(tarfile.USTAR_FORMAT)
        file.write(head)
        file.seek(len(head) + size - len(tail))
        file.write(tail)
        file.write(b"\0" * (-size % 512))
        second = tarfile.TarInfo(B)
        second.size = 3
        file.write(second.tobuf(tarfile.USTAR_FORMAT) + b"abc" + b"\0" * 509 + b"\0" * 1024)
    source = TarSource(path)
    assert b"".join(source.stream(A, size - len(tail), len(tail))) == tail
    assert source.read(B, 3) == b"abc"
    with pytest.raises(BundleRefused):
        source.read(A, 1000)


def test_sizes_beyond_octal_are_read_from_binary_and_pax_headers() -> None:
    size = 9 * 2**30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo(A)
        info.size = size
        head = info.tobuf(format)
        total = len(head) + size + 1024
        found = index_members(
            lambda offset, length, h=head, t=total: h[offset : offset + length] or bytes(min(length, t - offset)), total
        )
        assert found == {A: Member(len(head), size)}


def test_not_a_file_or_shrinking_is_the_sources_fault(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable):
        TarSource(tmp_path)
    with pytest.raises(SourceUnavailable):
        TarSource(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceUnavailable):
        TarSource(tmp_path / "pipe")
    path = tmp_path / "t"
    path.write_bytes(write(member(A, b"1" * 5000)))
    source = TarSource(path)
    os.truncate(path, 600)
    with pytest.raises(SourceUnavailable):
        source.read(A, 5000)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.one_of(
            st.integers(1, 10**6).map(lambda n: f"metadata/{n}.root.json"),
            st.binary(max_size=40).map(lambda data: f"objects/{hashlib.sha256(data).hexdigest()}"),
            st.from_regex(r"[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?", fullmatch=True)
            .filter(lambda name: name not in ("con", "prn", "aux", "nul") and not name.startswith(("com", "lpt")))
            .map(lambda name: f"manifests/{name}/{'0' * 64}.1.0.0-{'a' * 40}.json"),
        ),
        st.binary(max_size=2000),
        max_size=6,
    ),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_property_reads_what_tarfile_writes(files: dict[str, bytes], format: int) -> None:
    try:
        data = write(*(member(name, content) for name, content in files.items()), format=format)
    except ValueError:
        return  # ustar has no room for the longest names
    found = index(data)
    assert {name: data[entry.offset : entry.offset + entry.size] for name, entry in found.items()} == files


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_property_any_change_is_refused_or_harmless(data: st.DataObject) -> None:
    original = write(member(A, b"1" * 300), member(B, b"2" * 20, pax_headers={"comment": "c"}))
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        changed = changed[: data.draw(st.integers(0, len(changed)))]
    try:
        found = index(bytes(changed))
    except BundleRefused as error:
        assert error.reason is Reason.TAR_INVALID
        return
    assert set(found) == {A, B}
    assert all(entry.offset + entry.size <= len(changed) for entry in found.values())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_property_arbitrary_bytes_never_crash(data: bytes) -> None:
    try:
        index(data)
    except BundleRefused as error:
        assert error.reason is Reason.TAR_INVALID
