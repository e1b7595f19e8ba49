"""The decision whether KVM here can run Linux."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.nested_host.probe import kvm_runs_linux


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIO_VMM_HOST", raising=False)


@pytest.mark.parametrize(("chosen", "runs"), [("direct", True), ("nested", False)])
def test_variable_that_names_a_host_decides(
    monkeypatch: pytest.MonkeyPatch, chosen: str, runs: bool
) -> None:
    monkeypatch.setenv("TRIO_VMM_HOST", chosen)

    answer = kvm_runs_linux(Path("/nonexistent"))

    assert answer.runs is runs
    assert f"TRIO_VMM_HOST={chosen}" in answer.reason


def test_variable_with_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIO_VMM_HOST", "laptop")

    with pytest.raises(ValueError, match="direct, nested or auto"):
        kvm_runs_linux()


def test_missing_device_needs_the_nested_host(tmp_path: Path) -> None:
    answer = kvm_runs_linux(tmp_path / "kvm")

    assert answer == (False, f"this machine has no {tmp_path / 'kvm'}")


def test_device_that_is_no_kvm_needs_the_nested_host(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()

    answer = kvm_runs_linux(device)

    assert not answer.runs
    assert "does not answer" in answer.reason
