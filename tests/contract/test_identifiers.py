"""Names, versions and paths from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import identifiers as names
from contract.errors import BundleRefused
from contract.reasons import Reason


@pytest.mark.parametrize("path", ["a", "model.onnx", "evidence/report.html", "a/b/c/d", "ünï.txt", ".hidden", "a..b"])
def test_ordinary_paths_pass(path: str) -> None:
    assert str(names.check_path(path)) == path


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", ".", "..", "a\\b", "C:", "C:/x", "c:x",
        "a\x00b", "a\nb", "a\x7fb", "con", "CON.txt", "a/NUL", "lpt1.bin", "COM¹", "a.", "a ", " a", "x/ y",
        "a\u202eb", "a" * 256, "/".join("a" * 9), "\ud800", "a:b", "a*", "a?b", "a|b", '"a"', "<a>",
    ],
)  # fmt: skip
def test_paths_that_could_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(BundleRefused) as caught:
        names.check_path(path)
    assert caught.value.reason is Reason.UNSAFE_PATH


@given(st.text(max_size=40))
def test_an_accepted_path_stays_below_its_root(text: str) -> None:
    try:
        names.check_path(text)
    except BundleRefused:
        return
    root = Path("/srv/bundle")
    assert names.path_below(root, text).is_relative_to(root)


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle-evil").mkdir()
    (tmp_path / "bundle" / "link").symlink_to(tmp_path / "bundle-evil")
    with pytest.raises(BundleRefused) as caught:
        names.path_below(tmp_path / "bundle", "link/file")
    assert caught.value.reason is Reason.UNSAFE_PATH


@pytest.mark.parametrize("paths", [["a", "a"], ["Model", "model"], ["straße", "STRASSE"], ["a", "a/b"], ["a/b", "A"]])
def test_twins_are_refused(paths: list[str]) -> None:
    with pytest.raises(BundleRefused) as caught:
        names.check_paths_distinct(paths)
    assert caught.value.reason is Reason.UNSAFE_PATH


def test_different_paths_in_one_directory_pass() -> None:
    names.check_paths_distinct(["a/b", "a/c", "ab", "a.b"])


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "../x", "a/b", "a..b", "con", "a" * 65, "a b", "ä", "a\n"])
def test_unsafe_bundle_names_are_refused(name: str) -> None:
    with pytest.raises(BundleRefused) as caught:
        names.check_bundle_name(name)
    assert caught.value.reason is Reason.UNSAFE_NAME


@pytest.mark.parametrize(
    "version", ["1", "1.0", "01.0.0", "1.0.0-01", "v1.0.0", "1.0.0 ", "1.0.0/..", "9999999999.0.0", "1.0.0-" + "a" * 60]
)
def test_versions_that_are_not_semver_are_refused(version: str) -> None:
    with pytest.raises(BundleRefused):
        names.check_version(version)


@pytest.mark.parametrize("text", ["a", "@1.0.0", "a@", "a@1", "a@1.0.0@2.0.0"])
def test_references_need_a_name_and_a_version(text: str) -> None:
    with pytest.raises(BundleRefused):
        names.parse_reference(text)


def test_a_reference_splits() -> None:
    assert names.parse_reference("phi-3.5-mini@1.0.0-rc.1") == ("phi-3.5-mini", "1.0.0-rc.1")
