"""Property: no single change to a published repository or ``.edgebundle`` gets a device to install something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.source.tar import TarSource
from tests.contract.trust.publisher import MemorySource
from tests.mutate.mutation import Kind, Sample, Verdict, judge, make_sample, mutate, try_repository, try_tar


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutations")


@pytest.fixture(scope="module")
def sample(scratch: Path) -> Sample:
    return make_sample(scratch)


def test_the_unchanged_sample_is_installed(sample: Sample, scratch: Path) -> None:
    assert judge(lambda: MemorySource(sample.files), sample) == (Verdict.UNCHANGED, None)
    assert judge(lambda: TarSource(scratch / "demo.edgebundle"), sample) == (Verdict.UNCHANGED, None)


def test_a_change_that_matters_is_not_called_harmless(sample: Sample) -> None:
    wrong = Sample(sample.files, sample.tar, sample.root, {**sample.expected, "model.onnx": b"other"})
    with pytest.raises(AssertionError):
        judge(lambda: MemorySource(sample.files), wrong)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_property_changed_repository(sample: Sample, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(sample.files)))
    kind = data.draw(st.sampled_from(list(Kind)))
    try_repository(sample, path, mutate(sample.files[path], kind, lambda n: data.draw(st.integers(0, n - 1))))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_property_changed_edgebundle(sample: Sample, scratch: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(Kind)))
    try_tar(sample, mutate(sample.tar, kind, lambda n: data.draw(st.integers(0, n - 1))), scratch)
