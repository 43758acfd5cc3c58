"""What a record says about the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.machine import describe_device, git_commit, peak_memory, pick_device, versions


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", "cuda:-1", ""])
def test_devices_that_do_not_exist(device: str) -> None:
    with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:N"):
        pick_device(device)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    assert pick_device("auto", [0]) == torch.device("cpu")  # as in MMSA
    with pytest.raises(InputError, match="sees no GPU here; use --device cpu"):
        pick_device("cuda")


def test_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((10, 30, 20)[index], 40))
    assert pick_device("auto") == torch.device("cuda:1")
    assert pick_device("auto", [2]) == torch.device("cuda:2")
    assert pick_device("cuda:0", [2]) == torch.device("cuda:0")
    assert pick_device("cpu", [2]) == torch.device("cpu")
    with pytest.raises(InputError, match="GPU 3 does not exist: this machine has 3"):
        pick_device("cuda:3")


def test_versions_and_device() -> None:
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["MMSA"] is not None
    assert describe_device(torch.device("cpu"))["threads"] == torch.get_num_threads()
    memory = peak_memory(torch.device("cpu"))
    assert memory["gpu"] is None
    assert memory["process"] is None or 20 < memory["process"] < 100_000  # MiB


def test_git_commit_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) is None
    (tmp_path / "code").touch()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "code"], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    environment = tmp_path / "venv"  # code installed in an environment that lies in somebody's repository
    environment.mkdir()
    assert git_commit(environment) is None
    (tmp_path / "new").touch()
    assert git_commit(tmp_path) == commit + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None
