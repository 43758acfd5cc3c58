"""Nothing that the harness or MMSA's own loaders read is run: features, checkpoints, and what takes their place."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmsa_decalign.cli import main
from mmsa_decalign.data.convert import convert
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.datasets import locate
from mmsa_decalign.harness.registry import register, unregister
from mmsa_decalign.harness.safe_reading import read_checkpoint

pytestmark = pytest.mark.usefixtures("mmsa_run_cleanly")


class Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def registered() -> Iterator[Any]:
    import MMSA

    register()
    yield MMSA
    unregister()


@pytest.fixture
def converted(tiny: Path, tmp_path: Path) -> Path:
    convert(tiny, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def args_for(path: Path, **more: Any) -> dict[str, Any]:
    from easydict import EasyDict

    return EasyDict({"dataset_name": "mosi", "model_name": "lf_dnn", "custom_feature": str(path), "feature_T": "",
                     "feature_A": "", "feature_V": "", "need_data_aligned": False, "feature_dims": [0, 0, 0],
                     "seq_lens": [], "batch_size": 4, **more})  # fmt: skip


def mmsa_arrays(path: Path, **more: Any) -> dict[str, Any]:
    """What MMSA's own loader makes of a file."""
    from MMSA.data_loader import MMDataset

    found = {}
    for mode in ("train", "valid", "test"):
        split = MMDataset(args_for(path, **more), mode)
        found |= {f"{mode} {name}": np.asarray(getattr(split, name))
                  for name in ("text", "audio", "vision", "audio_lengths", "vision_lengths", "ids", "raw_text")}
        found[f"{mode} labels"] = split.labels["M"]
    return found


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    for name, array in one.items():
        assert (array.dtype.kind, array.shape, array.tolist()) == (
            other[name].dtype.kind, other[name].shape, other[name].tolist()), name


def test_mmsas_loader_reads_the_same_and_takes_converted_files(tiny: Path, converted: Path) -> None:
    plain = mmsa_arrays(tiny)
    register()
    try:
        assert_equal(mmsa_arrays(tiny), plain)
        assert_equal(mmsa_arrays(converted), plain)
        assert_equal(mmsa_arrays(tiny, feature_A=str(converted)), plain)
    finally:
        unregister()


def test_mmsas_loader_runs_nothing(registered: Any, tmp_path: Path) -> None:
    trace, evil = tmp_path / "trace", tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps({"train": Calls(os.mkdir, str(trace))}))
    options = dict(seeds=[1], gpu_ids=[], num_workers=0, verbose_level=0, model_save_dir=tmp_path / "models",
                   res_save_dir=tmp_path / "results", log_dir=tmp_path / "logs")
    with pytest.raises(InputError, match=r"evil.pkl: the pickle asks for \w+.mkdir"):
        registered.MMSA_run("lf_dnn", "mosi", custom_feature=str(evil), **options)
    assert not trace.exists()
    unregister()
    with pytest.raises(TypeError):  # MMSA alone runs it, and then misses the features
        mmsa_arrays(evil)
    assert trace.exists()


def test_the_view_is_mmsas_alone_and_is_taken_back() -> None:
    import MMSA.run

    from mmsa_decalign.harness.patching import mmsa_module

    loader = mmsa_module("data_loader")
    for module in (loader, MMSA.run):
        assert module.pickle is pickle
    register()
    assert loader.pickle is not pickle
    assert MMSA.run.pickle is not pickle
    assert MMSA.run.pickle.dump is pickle.dump
    assert MMSA.run.torch.load is not torch.load
    unregister()
    for module in (loader, MMSA.run):
        assert module.pickle is pickle
    assert MMSA.run.torch is torch


def test_mmsa_test_takes_safe_checkpoints_of_both_formats_and_runs_nothing(
    registered: Any, tiny: Path, tmp_path: Path
) -> None:
    options = dict(seeds=[3], custom_feature=str(tiny), gpu_ids=[], num_workers=0, verbose_level=0,
                   model_save_dir=tmp_path, res_save_dir=tmp_path / "results", log_dir=tmp_path / "logs")
    small = {"num_epochs": 1, "d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2}
    registered.MMSA_run("decalign", "mosi", config=small, **options)
    config = {**registered.get_config_regression("decalign", "mosi"), **small}
    test = pickle.loads(tiny.read_bytes())["test"]
    sample = tmp_path / "one.pkl"
    sample.write_bytes(pickle.dumps({key: test[key][0] for key in ("text", "audio", "vision")}))
    weights = tmp_path / "decalign-mosi.pth"
    save_file(read_checkpoint(weights), tmp_path / "w.safetensors")
    predictions = [registered.MMSA_test(config=dict(config), weights_path=path, feature_path=sample, gpu_id=-1)
                   for path in (weights, tmp_path / "w.safetensors")]
    assert predictions[0] == predictions[1]
    torch.save({"weight": Calls(os.mkdir, str(tmp_path / "trace"))}, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError):
        registered.MMSA_test(config=dict(config), weights_path=tmp_path / "evil.pth", feature_path=sample, gpu_id=-1)
    sample.write_bytes(pickle.dumps(Calls(os.mkdir, str(tmp_path / "trace"))))
    with pytest.raises(InputError, match="one.pkl: the pickle asks for"):
        registered.MMSA_test(config=dict(config), weights_path=weights, feature_path=sample, gpu_id=-1)
    assert not (tmp_path / "trace").exists()


# Checkpoints


STATE = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3)}


@pytest.mark.parametrize("how", ["zip", "old", "safetensors"])
def test_checkpoints_of_every_format_are_read(tmp_path: Path, how: str) -> None:
    path = tmp_path / "x.pth"  # the content decides, not the name
    if how == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=how == "zip")
    state = read_checkpoint(path)
    assert list(sorted(state)) == sorted(STATE)
    assert all(torch.equal(state[name], STATE[name]) and state[name].dtype == STATE[name].dtype for name in STATE)


@pytest.mark.parametrize("how", ["zip", "old", "alone"])
def test_a_checkpoint_runs_nothing(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "x.pth", tmp_path / "trace"
    evil = {"weight": Calls(os.mkdir, str(trace))}
    if how == "alone":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(InputError, match="is damaged, or holds more than tensors") as caught:
        read_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 2
    assert not trace.exists()
    torch.load(path, weights_only=False) if how != "alone" else pickle.loads(path.read_bytes())
    assert trace.exists()  # the trap does work


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for thing in (STATE["weight"], [1], {"a": 1}, {1: STATE["weight"]}):
        torch.save(thing, path)
        with pytest.raises(InputError, match="holds no state dict"):
            read_checkpoint(path)
    save_file(STATE, path)
    whole = path.read_bytes()
    for content in (b"text", whole[:-1], whole[:9], whole[:30]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            read_checkpoint(path)
    path.write_bytes(b"")
    for wrong, message in ((path, "is empty"), (tmp_path, "is a folder"), (tmp_path / "absent.pth", "no such file")):
        with pytest.raises(InputError, match=message):
            read_checkpoint(wrong)


# Converted files, by the harness


def test_a_converted_file_beside_the_pickles_place_is_found(tmp_path: Path) -> None:
    place = tmp_path / "MOSI" / "Processed" / "aligned_50.pkl"
    place.parent.mkdir(parents=True)
    place.with_suffix(".safetensors").write_bytes(b"x")
    assert locate("mosi", "MOSI/Processed/aligned_50.pkl", root=tmp_path) == place.with_suffix(".safetensors")
    place.write_bytes(b"x")
    assert locate("mosi", "MOSI/Processed/aligned_50.pkl", root=tmp_path) == place


def test_training_gives_the_same_numbers_from_a_converted_file(
    tiny: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    for features, more in ((tiny, []), (converted, []), (tiny, ["-Fa", str(converted), "-Fv", str(converted)])):
        command = ["-m", "lf_dnn", "-d", "mosi", "--feature-file", str(features), "-s", "1", "--set", "max_epochs=1",
                   "--set", "batch_size=8", "-v", "0", "--device", "cpu", "--json", *more]
        folders = [f"--{name}-dir={tmp_path / name}" for name in ("model-save", "res-save", "log")]
        assert main([*command, *folders]) == 0
        record = json.loads(capsys.readouterr().out)["records"][0]
        figures.append(json.loads(Path(record).read_text())["test"])
    assert figures[0] == figures[1] == figures[2]
