"""Predictions from a checkpoint: those of the run that made it, in whatever file and in whatever batches."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_matrix import small_settings, write_encoder, write_features

from mmsa_decalign.data.convert import convert
from mmsa_decalign.data.reading import read_features
from mmsa_decalign.data.synthetic import make_synthetic, write_synthetic
from mmsa_decalign.errors import InputError, RunError
from mmsa_decalign.harness.calls import calls_of
from mmsa_decalign.harness.checkpoints import ENTRY, attach, origin_of
from mmsa_decalign.harness.config import resolve
from mmsa_decalign.harness.predict import Predictions, predict
from mmsa_decalign.harness.runner import prepare, run
from mmsa_decalign.model import DecAlign
from mmsa_decalign.settings import Settings

SMALL = {"d_model": 16, "num_heads": 4, "nlevels": 2, "num_prototypes": 2, "num_epochs": 3, "batch_size": 16,
         "learning_rate": 0.003, "conv_kernel_sizes": [1, 3, 3]}
CLIPPED = {**SMALL, "need_feature_standardized": True, "feature_clip_percentiles": [5, 90]}
ALIGNED = ("mfn", "ef_lstm", "graph_mfn", "mfm", "misa", "tfr_net", "bert_mag", "mctn")
BASELINES = ("lf_dnn", "mult", "mfn", "mfm", "self_mm", "mmim", "mtfn", "tfn")


@dataclasses.dataclass
class Run:
    """A training that is done: its feature file, its record and where that lies."""

    features: Path
    record: dict[str, Any]
    path: Path

    @property
    def checkpoint(self) -> Path:
        return Path(self.record["checkpoint"])

    def predict(self, features: Path | None = None, **options: Any) -> Predictions:
        return predict(self.checkpoint, features or self.features, device="cpu", **options)


def train(folder: Path, model: str, dataset: str, file: Path, **options: Any) -> Run:
    job = prepare(model, dataset, feature_file=file, seeds=[3], device="cpu", verbose=0, **options,
                  **{f"{name}_dir": folder / name for name in ("model_save", "res_save", "log")})
    outcome = run(job)
    return Run(file, outcome.records[0], outcome.record_paths[0])


@pytest.fixture(scope="module")
def decalign(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With sequences, kernels of three steps, standardised and clipped inputs."""
    folder = tmp_path_factory.mktemp("decalign")
    file = write_synthetic(folder / "tiny.pkl", samples=(64, 16, 41))
    return train(folder, "decalign", "synthetic", file, overrides=CLIPPED)


def shorten(file: Path) -> None:
    """Some of the audio and vision in a file of unaligned sequences gets shorter than the array."""
    data, rng = pickle.loads(file.read_bytes()), np.random.default_rng(0)
    for split in (data[name] for name in ("train", "valid", "test")):
        for m in ("audio", "vision"):
            steps = split[m].shape[1]
            lengths = rng.integers(steps // 2, steps + 1, len(split["id"]))
            split[m][np.arange(steps) >= lengths[:, None]] = 0
            split[f"{m}_lengths"] = lengths.tolist()
    file.write_bytes(pickle.dumps(data, protocol=4))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """MMSA's models, each trained once for one epoch."""
    made: dict[str, Run] = {}

    def get(model: str, **options: Any) -> Run:
        if model not in made:
            folder = tmp_path_factory.mktemp(model)
            dataset = "sims" if model == "mtfn" else "mosi"
            file = write_features(folder, dataset, aligned=model in ALIGNED, samples=(36, 12, 40))
            if model not in ALIGNED:
                shorten(file)
            if resolve(model, dataset).settings.get("use_bert"):
                options["pretrained"] = str(write_encoder(folder / "encoder"))
            made[model] = train(folder, model, dataset, file, overrides=small_settings(model), **options)
        return made[model]

    return get


def raw(file: Path) -> dict[str, Any]:
    return pickle.loads(file.read_bytes())


def dump(path: Path, data: Any) -> Path:
    path.write_bytes(pickle.dumps(data, protocol=4))
    return path


def carried(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, read with the standard library alone."""
    with zipfile.ZipFile(checkpoint) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(ENTRY)]
        return json.loads(archive.read(name))


def outputs(found: Predictions, split: str = "test") -> np.ndarray:
    return next(one for one in found.splits if one.name == split).outputs


def assert_close(found: np.ndarray, expected: np.ndarray, tol: float = 1e-6) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tol)


def one_sample(file: Path, row: int, split: str = "test") -> dict[str, Any]:
    """As MMSA-FET writes a single video: arrays without padding and without a batch axis, and nothing else."""
    whole, lengths = raw(file)[split], read_features(file).splits[split].lengths
    sample = {m: whole[m][row][:lengths[m][row]].astype(np.float64) for m in ("text", "audio", "vision")}
    tokens = whole["text_bert"][row]
    return {**sample, "text_bert": tokens[:, :int(tokens[1].sum())]}


def rebuilt(done: Run) -> DecAlign:
    """The model of a run of DecAlign, from its state dict and its record."""
    known = set(Settings.names())
    model = DecAlign(Settings(**{key: value for key, value in done.record["settings"].items() if key in known}))
    model.load_state_dict(torch.load(done.checkpoint, weights_only=True))
    return model.eval()


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        call()
    assert len(str(error.value).splitlines()) <= 2
    return str(error.value)


# The test run comes back


def assert_test_run_comes_back(done: Run) -> None:
    found = done.predict(splits=["test"])
    assert found.splits[0].metrics == {name: value for name, value in done.record["test"].items() if name != "Loss"}
    assert found.splits[0].ids == raw(done.features)["test"]["id"]
    assert np.ptp(found.splits[0].outputs) > 1e-4, "a constant would do as well"


def test_the_test_run_of_decalign_comes_back(decalign: Run) -> None:
    assert_test_run_comes_back(decalign)


@pytest.mark.slow
@pytest.mark.parametrize("model", BASELINES)
def test_the_test_run_of_a_baseline_comes_back(model: str, baseline: Callable[[str], Run]) -> None:
    assert_test_run_comes_back(baseline(model))


def test_the_test_run_of_several_members_comes_back(tmp_path: Path) -> None:
    file = write_synthetic(tmp_path / "tiny.pkl", samples=(32, 16, 16))
    assert_test_run_comes_back(train(tmp_path, "decalign", "synthetic", file, overrides=CLIPPED | {"members": 2}))


def test_predictions_equal_those_of_the_model_in_this_process(decalign: Run) -> None:
    """Bit for bit, from the state dict and the batches of the run, without any of the code under test."""
    model = rebuilt(decalign)
    split = read_features(decalign.features).splits["test"]
    expected = []
    for rows in (slice(0, 16), slice(16, 32), slice(32, 41)):
        inputs = (torch.from_numpy(getattr(split, m)[rows]) for m in ("text", "audio", "vision"))
        with torch.no_grad():
            lengths = {m: torch.from_numpy(steps[rows]) for m, steps in split.lengths.items()}
            expected.append(model(*inputs, lengths=lengths)["M"])
    np.testing.assert_array_equal(outputs(decalign.predict()), torch.cat(expected).numpy())


# Batches, padding and company make no difference


@pytest.mark.parametrize("size", [1, 2, 7, 32, 1000])
def test_batch_size(size: int, decalign: Run) -> None:
    assert_close(outputs(decalign.predict(batch_size=size)), outputs(decalign.predict()))


@pytest.mark.slow
@pytest.mark.parametrize("model", BASELINES)
def test_batch_size_of_a_baseline(model: str, baseline: Callable[[str], Run]) -> None:
    done = baseline(model)
    expected = outputs(done.predict(splits=["test"]))
    for size in (1, 7, 32, 1000):
        assert_close(outputs(done.predict(splits=["test"], batch_size=size)), expected)


@pytest.mark.slow
def test_a_deep_model_in_calls_of_every_size(tmp_path: Path) -> None:
    """Five layers, fifty steps, and so large a head that the rounding of small calls shows: 2e-6 without care."""
    data = make_synthetic(layout="mosi", samples=(33, 6, 45))
    data["generator"] = None
    file = dump(tmp_path / "mosi.pkl", data)
    deep = {"num_epochs": 1, "nlevels": 5, "num_heads": 8, "head_width": None, "pooled_skip": [], "skip_start": "zero",
            "projection_activation": "none"}
    done = train(tmp_path, "decalign", "mosi", file, overrides=deep)
    state = torch.load(done.checkpoint, weights_only=True)
    weight = next(name for name in state if name.endswith("head.weight"))
    scale = 2 / float(np.std(outputs(done.predict())))
    torch.save({**state, weight: state[weight] * scale}, tmp_path / "large.pth")

    def found(features: Path = file, **options: Any) -> np.ndarray:
        return outputs(predict(tmp_path / "large.pth", features, device="cpu", record=done.path, **options),
                       "test" if features == file else "all")

    expected = found()
    assert np.abs(expected).max() > 3
    for size in (1, 7, 32, 1000):
        assert_close(found(batch_size=size, splits=["test"]), expected)
    for row in (0, 20):
        assert_close(found(dump(tmp_path / "one.pkl", one_sample(file, row))), expected[[row]])


def test_the_calls_of_a_model() -> None:
    every = list(range(70))
    as_then = list(calls_of(every, 70, 32, most=32, as_in_run=True))
    assert as_then == [(every[:32], list(range(32))), (every[32:64], list(range(32))), (every[64:], list(range(6)))]
    folded = list(calls_of(every[:65], 65, 32, most=32, as_in_run=True))  # as in a run, where none is left alone
    assert [len(call) for call, _ in folded] == [32, 33]
    for most, as_in_run in ((1, True), (7, True), (1, False), (7, False), (32, False)):
        calls = list(calls_of(every, 70, 32, most=most, as_in_run=as_in_run))
        assert [call[place] for call, places in calls for place in places] == every
        last = {6} if as_in_run else set()
        assert {len(call) for call, _ in calls} == {32} | last
        assert max(len(places) for _, places in calls) <= max(most, *last, 0)
    assert list(calls_of([66, 69], 70, 32, most=1, as_in_run=True)) == [(every[64:], [2, 5])]
    assert list(calls_of([3], 70, 64, most=64, as_in_run=True)) == [([3] * 32, [0])]
    assert list(calls_of([3], 70, 20, most=20, as_in_run=False)) == [([3] * 20, [0])]
    assert list(calls_of([0], 1, 1, most=1, as_in_run=True)) == [([0, 0], [0])]


def test_a_sample_alone_and_without_its_padding(decalign: Run, tmp_path: Path) -> None:
    expected, ids = outputs(decalign.predict()), raw(decalign.features)["test"]["id"]
    for row in (0, 5, 40):
        alone = decalign.predict(samples=[ids[row]])
        assert [(one.name, one.ids) for one in alone.splits] == [("test", [ids[row]])]
        assert_close(alone.splits[0].outputs, expected[[row]])
        single = dump(tmp_path / "single.pkl", one_sample(decalign.features, row))
        found = decalign.predict(single).splits
        assert [(one.name, one.ids, one.labels) for one in found] == [("all", ["single"], [None])]
        assert_close(found[0].outputs, expected[[row]])


@pytest.mark.slow
@pytest.mark.parametrize("model", BASELINES)
def test_a_sample_of_a_baseline_alone_and_without_its_padding(
    model: str, baseline: Callable[[str], Run], tmp_path: Path
) -> None:
    """lf_dnn averages over the padding too: the sample gets that of training back."""
    done = baseline(model)
    expected, ids = outputs(done.predict(splits=["test"])), raw(done.features)["test"]["id"]
    assert_close(done.predict(samples=[ids[4]]).splits[0].outputs, expected[[4]])
    if model not in ALIGNED:  # in an aligned file the lengths of audio and vision are not told
        lengths = read_features(done.features).splits["test"].lengths
        short = int(np.argmin(lengths["audio"] + lengths["vision"]))
        single = dump(tmp_path / "single.pkl", one_sample(done.features, short))
        assert_close(done.predict(single).splits[0].outputs, expected[[short]])


def test_padding_changes_nothing(decalign: Run, tmp_path: Path) -> None:
    data = raw(decalign.features)
    for split in (data["test"], data["valid"], data["train"]):
        for m in ("text", "audio", "vision"):
            split[m] = np.pad(split[m], ((0, 0), (0, 9), (0, 0)))
        split["text_bert"] = np.pad(split["text_bert"], ((0, 0), (0, 0), (0, 9)))
    wider = dump(tmp_path / "wider.pkl", data)
    assert_close(outputs(decalign.predict(wider)), outputs(decalign.predict()))


# The statistics are those of training


def test_clipping_and_standardisation_with_the_statistics_of_training(decalign: Run, tmp_path: Path) -> None:
    """The limits, measured with NumPy on the training split alone, decide what a far-off feature counts as."""
    features = read_features(decalign.features)
    state = torch.load(decalign.checkpoint, weights_only=True)
    split = features.splits["train"]
    rows = np.concatenate([x[:n] for x, n in zip(split.audio, split.lengths["audio"], strict=True)]).astype(np.float64)
    low, high = np.percentile(rows, [5, 90], axis=0)
    clipped = rows.clip(low, high)
    for name, expected in (("low", low), ("high", high), ("mean", clipped.mean(axis=0)), ("std", clipped.std(axis=0))):
        found = next(value for key, value in state.items() if key.endswith(f"standardise.audio.{name}"))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)

    def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
        data = raw(decalign.features)
        for split, lengths in ((data[name], features.splits[name].lengths["audio"]) for name in data if name in
                               ("train", "valid", "test")):
            valid = np.arange(split["audio"].shape[1]) < np.asarray(lengths)[:, None]
            split["audio"] = np.where(valid[:, :, None], change(split["audio"]), 0).astype(np.float32)
        return dump(tmp_path / f"{name}.pkl", data)

    before = outputs(decalign.predict())
    limits = next(value for key, value in state.items() if key.endswith("standardise.audio.high")).numpy()
    far = outputs(decalign.predict(changed("far", lambda x: x + 1e6)))
    at_the_limit = decalign.predict(changed("high", lambda x: np.broadcast_to(limits, x.shape)))
    np.testing.assert_array_equal(far, outputs(at_the_limit))
    # Statistics of the new file would undo a shift and a scale: these do not.
    shifted = outputs(decalign.predict(changed("shifted", lambda x: 2 * x + 3)))
    assert np.abs(shifted - before).max() > 1e-2
    assert np.abs(far - before).max() > 1e-2


# The checkpoint


def test_a_checkpoint_travels_alone(decalign: Run, tmp_path: Path) -> None:
    copy = shutil.copy(decalign.checkpoint, tmp_path / "another name.pth")
    found = predict(copy, decalign.features, device="cpu", splits=["test"])
    np.testing.assert_array_equal(outputs(found), outputs(decalign.predict()))
    assert (found.origin.model, found.origin.seed, found.origin.id) == ("decalign", 3, decalign.record["id"])
    assert carried(Path(copy))["settings"]["d_model"] == 16
    assert str(tmp_path.parent) not in json.dumps(carried(Path(copy))), "no path of this machine"


def test_it_is_still_a_state_dict_for_everybody_else(decalign: Run) -> None:
    state = torch.load(decalign.checkpoint, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert zipfile.ZipFile(decalign.checkpoint).testzip() is None
    mapped = torch.load(decalign.checkpoint, weights_only=True, mmap=True)
    assert all(torch.equal(value, mapped[name]) for name, value in state.items())


def test_an_older_checkpoint_finds_the_record_of_its_run(decalign: Run, tmp_path: Path) -> None:
    saved, runs = tmp_path / "saved_models", tmp_path / "results" / "runs"
    runs.mkdir(parents=True)
    saved.mkdir()
    older = saved / decalign.checkpoint.name
    torch.save(torch.load(decalign.checkpoint, weights_only=True), older)
    assert "carries no settings" in refused(lambda: predict(older, decalign.features, device="cpu"))
    record = json.loads(decalign.path.read_text())
    del record["features"]["sha256"], record["features"]["samples"]  # nothing but what prediction needs
    (runs / decalign.path.name).write_text(json.dumps({**record, "id": "00000000"}))
    assert "carries no settings" in refused(lambda: predict(older, decalign.features, device="cpu"))  # of another run
    (runs / decalign.path.name).write_text(json.dumps(record))
    np.testing.assert_array_equal(outputs(predict(older, decalign.features, device="cpu")), outputs(decalign.predict()))
    moved = shutil.copy(older, tmp_path / "moved.pth")
    found = predict(moved, decalign.features, device="cpu", record=decalign.path)
    np.testing.assert_array_equal(outputs(found), outputs(decalign.predict()))


@pytest.mark.slow
def test_an_older_checkpoint_of_a_model_that_averages(baseline: Callable[[str], Run], tmp_path: Path) -> None:
    """Its record has the steps of the file in another place than those that the model saw."""
    done = baseline("lf_dnn")
    torch.save(torch.load(done.checkpoint, weights_only=True), tmp_path / "older.pth")
    origin = origin_of(tmp_path / "older.pth", done.path)
    assert origin.steps == origin_of(done.checkpoint).steps == tuple(
        raw(done.features)["train"][m].shape[1] for m in ("text", "audio", "vision"))


def test_settings_lie_beside_a_checkpoint_that_is_no_archive(decalign: Run, tmp_path: Path) -> None:
    older = tmp_path / "older.pth"
    torch.save(torch.load(decalign.checkpoint, weights_only=True), older, _use_new_zipfile_serialization=False)
    attach(older, json.loads(decalign.path.read_text()))
    assert (tmp_path / "older.pth.json").is_file()
    np.testing.assert_array_equal(outputs(predict(older, decalign.features, device="cpu")), outputs(decalign.predict()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "are not JSON"),
        ("[1]", "are a JSON list"),
        ("{}", "has no 'settings' and 'features'"),
        ({"model": 3}, "'model' is 3"),
        ({"model": "decaling"}, "did you mean 'decalign'?"),
        ({"dataset": "mozi"}, "unknown data set 'mozi'"),
        ({"settings": {"d_model": 16, "tasks": ["M + __import__('os').getpid()"]}}, "setting tasks="),
        ({"settings": {"modalities": 5}}, "setting modalities=5: expected a list of names"),
        ({"settings": {"label_names": [1, 2]}, "train_mode": "classification"}, "setting label_names=[1, 2]"),
        ({"settings": {"use_bert": True, "pretrained": 5}}, "setting pretrained=5: expected a name or a folder"),
        ({"settings": {"d_modle": 16}}, "d_modle"),
        ({"settings": {"d_model": 32, "num_heads": 4}}, "its weights are not those of 'decalign'"),
        ({"features": {"feature_dims": [1, 2], "steps": [1, 1, 1]}}, "'feature_dims' is [1, 2]"),
        ({"features": {"feature_dims": [24, 12, 16], "steps": [1, 1, -1]}}, "'steps' is [1, 1, -1]"),
    ],
)
def test_settings_of_strangers(text: Any, message: str, decalign: Run, tmp_path: Path) -> None:
    good = carried(decalign.checkpoint)
    text = text if isinstance(text, str) else json.dumps({**good, **text})
    (tmp_path / "record.json").write_text(text)
    assert message in refused(lambda: decalign.predict(record=tmp_path / "record.json"))


def test_settings_that_unpack_to_more_than_they_should(decalign: Run, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pth"
    torch.save(torch.load(decalign.checkpoint, weights_only=True), bomb)
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"bomb/{ENTRY}", " " * (1 << 22))
    assert "its settings take 4194304 bytes" in refused(lambda: predict(bomb, decalign.features, device="cpu"))


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_settings_that_were_damaged_are_refused_though_others_lie_beside(packed: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"weight": torch.ones(3)}, path)
    with zipfile.ZipFile(path, "a", packed) as archive:
        archive.writestr(f"x/{ENTRY}", json.dumps(SMALL))
        start = archive.getinfo(f"x/{ENTRY}").header_offset + len(archive.getinfo(f"x/{ENTRY}").FileHeader())
    (tmp_path / "x.pth.json").write_text("{}")
    whole = path.read_bytes()
    for place in (start, start + 9, start + 30):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1:])
        assert torch.load(path, weights_only=True)["weight"].sum() == 3, "the weights are whole"
        message = refused(lambda: origin_of(path))
        assert message.startswith(f"checkpoint {path}: the settings in it are damaged")
        assert "--record FILE" in message


# Layouts of files


def test_a_file_without_labels_ids_and_sentences(decalign: Run, tmp_path: Path) -> None:
    test = raw(decalign.features)["test"]
    bare = {key: test[key] for key in ("text", "audio", "vision", "text_bert", "audio_lengths", "vision_lengths")
            if key in test}
    expected = outputs(decalign.predict())
    for data, name in ((bare, "all"), ({"test": bare}, "test"), ({"unseen": bare, "about": {"a": 1}}, "unseen")):
        found = decalign.predict(dump(tmp_path / "bare.pkl", data)).splits
        assert [(one.name, one.ids[-1], one.labels[0], one.metrics) for one in found] == [(name, "40", None, None)]
        assert_close(found[0].outputs, expected)


def test_some_samples_without_a_label(decalign: Run, tmp_path: Path) -> None:
    data = raw(decalign.features)
    data["test"]["regression_labels"] = data["test"]["regression_labels"].copy()
    data["test"]["regression_labels"][3] = np.nan
    (test,) = decalign.predict(dump(tmp_path / "some.pkl", data), splits=["test"]).splits
    assert test.labels[3] is None
    assert test.labels[2] == data["test"]["regression_labels"][2]
    assert test.metrics is None
    assert_close(test.outputs, outputs(decalign.predict()))


def test_a_converted_file_and_files_in_place_of_a_modality(decalign: Run, tmp_path: Path) -> None:
    expected = outputs(decalign.predict())
    convert(decalign.features, tmp_path / "features.safetensors")
    np.testing.assert_array_equal(outputs(decalign.predict(tmp_path / "features.safetensors")), expected)
    data, order = raw(decalign.features), slice(None, None, -1)
    audio = {name: {key: np.asarray(data[name][key])[order] for key in ("id", "audio", "audio_lengths")}
             for name in ("train", "valid", "test")}
    source = dump(tmp_path / "audio.pkl", audio)  # as MMSA-FET writes them: in the order in which they were done
    for name in audio:
        data[name]["audio"] = data[name]["audio"] + 1
    other = dump(tmp_path / "other.pkl", data)
    assert np.abs(outputs(decalign.predict(other)) - expected).max() > 1e-3
    found = decalign.predict(other, files={"audio": source})
    assert_close(outputs(found), expected)
    assert list(found.replaced) == ["audio"]
    single, sound = one_sample(decalign.features, 2), one_sample(decalign.features, 7)
    found = decalign.predict(dump(tmp_path / "one.pkl", {**single, "audio": sound["audio"] + 1}),
                             files={"audio": dump(tmp_path / "sound.pkl", {"audio": single["audio"]})})
    assert_close(found.splits[0].outputs, expected[[2]])
    one_split = dump(tmp_path / "valid.pkl", {"valid": audio["valid"]})
    assert "has no split 'train'" in refused(lambda: decalign.predict(other, files={"audio": one_split}))


def test_what_a_training_refuses_is_refused_in_the_same_words(decalign: Run, tmp_path: Path) -> None:
    data = raw(decalign.features)
    data["test"]["vision"] = data["test"]["vision"].copy()
    data["test"]["vision"][4, 1, 2] = np.nan
    bad = dump(tmp_path / "nan.pkl", data)
    message = refused(lambda: decalign.predict(bad))
    assert message == refused(lambda: read_features(bad))
    assert "NaN or Inf (1 value)" in message


def test_minus_infinity_in_audio_becomes_zero_with_the_warning_of_training(
    decalign: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = raw(decalign.features)
    zero = {name: {**split, "audio": split["audio"].copy()} for name, split in data.items() if name != "generator"}
    zero["test"]["audio"][4, 0, 1] = 0
    expected = outputs(decalign.predict(dump(tmp_path / "zero.pkl", zero)))
    zero["test"]["audio"][4, 0, 1] = -np.inf
    with caplog.at_level(logging.WARNING, logger="MMSA"):
        found = outputs(decalign.predict(dump(tmp_path / "inf.pkl", zero)))
    np.testing.assert_array_equal(found, expected)
    assert "values of -inf in 'audio' were set to 0 (test 1)" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "holds no features"),
        ({"a": 1}, "holds no features"),
        ({"train": {"id": ["a"]}}, "holds no features"),
        ({"text": 3, "audio": 3, "vision": 3}, "is empty"),
        ({"text": np.array([["a", "b"]]), "audio": np.ones((2, 12)), "vision": np.ones((2, 16))}, "no numbers"),
    ],
)
def test_a_file_that_holds_something_else(data: Any, message: str, decalign: Run, tmp_path: Path) -> None:
    assert message in refused(lambda: decalign.predict(dump(tmp_path / "x.pkl", data)))


def test_vectors_of_words_that_are_texts(decalign: Run, tmp_path: Path) -> None:
    """MMSA-FET leaves the numbers of a GloVe file as they are written there."""
    single = one_sample(decalign.features, 1)
    expected = decalign.predict(dump(tmp_path / "a.pkl", single)).splits[0].outputs
    texts = {**single, "text": single["text"].astype(np.float32).astype(str)}
    np.testing.assert_array_equal(decalign.predict(dump(tmp_path / "b.pkl", texts)).splits[0].outputs, expected)


# Widths, lengths, absent modalities


def test_another_width(decalign: Run, tmp_path: Path) -> None:
    single = one_sample(decalign.features, 1)
    single["audio"] = single["audio"][:, :11]
    message = refused(lambda: decalign.predict(dump(tmp_path / "narrow.pkl", single)))
    assert "'audio' has 11 features a step, and the checkpoint was trained on 12" in message


def test_a_longer_sequence(
    decalign: Run, baseline: Callable[[str], Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    single = one_sample(decalign.features, 1)
    single["audio"] = np.resize(single["audio"], (31, 12))
    long = dump(tmp_path / "long.pkl", single)
    cut = decalign.predict(dump(tmp_path / "cut.pkl", {**single, "audio": single["audio"][:20]})).splits[0].outputs
    with caplog.at_level(logging.WARNING, logger="MMSA"):
        whole = decalign.predict(long).splits[0].outputs
    assert "1 of 1 samples have more than the 20 steps of audio" in caplog.text
    assert np.abs(whole - cut).max() > 1e-4
    np.testing.assert_array_equal(decalign.predict(long, truncate=True).splits[0].outputs, cut)


def test_a_longer_sequence_for_a_checkpoint_of_one_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What --truncate says of itself holds here too; what is kept is told."""
    data = make_synthetic(samples=(16, 6, 8))
    for split in (data["train"], data["valid"], data["test"]):
        split.update({m: split[m][:, :1] for m in ("text", "audio", "vision")})
        for key in ("text_bert", "text_lengths", "audio_lengths", "vision_lengths"):
            split.pop(key, None)
    small = {key: value for key, value in SMALL.items() if key not in ("conv_kernel_sizes", "num_epochs")}
    done = train(tmp_path, "decalign", "synthetic", dump(tmp_path / "pooled.pkl", data),
                 overrides={**small, "num_epochs": 1})
    single = {m: data["test"][m][2] for m in ("text", "audio", "vision")}
    first = done.predict(dump(tmp_path / "one.pkl", single)).splits[0].outputs
    long = dump(tmp_path / "long.pkl", {m: np.concatenate([x, x + 1, x + 2]) for m, x in single.items()})
    assert "give one average over the steps" in refused(lambda: done.predict(long))
    np.testing.assert_array_equal(done.predict(long, truncate=True).splits[0].outputs, first)
    assert "more than the 1 step of audio" in caplog.text
    assert "cut (--truncate); the first step is kept, not the average" in caplog.text


@pytest.mark.slow
def test_a_longer_sequence_for_a_baseline(baseline: Callable[[str], Run], tmp_path: Path) -> None:
    done = baseline("self_mm")  # on token ids
    single = one_sample(done.features, 1)
    tokens = np.concatenate([single["text_bert"][:, :-1]] * 9 + [single["text_bert"][:, -1:]], axis=1)
    long = dump(tmp_path / "long.pkl", {**single, "text_bert": tokens})
    assert "cut them with --truncate" in refused(lambda: done.predict(long))
    cut = dump(tmp_path / "cut.pkl", {**single, "text_bert": np.concatenate([tokens[:, :24], tokens[:, -1:]], axis=1)})
    expected = done.predict(cut).splits[0].outputs
    np.testing.assert_array_equal(done.predict(long, truncate=True).splits[0].outputs, expected)
    sound = np.resize(single["audio"], (90, 5))  # self_mm packs by lengths, which must not go beyond the array
    expected = done.predict(dump(tmp_path / "cut.pkl", {**single, "audio": sound[:50]})).splits[0].outputs
    long = dump(tmp_path / "long.pkl", {**single, "audio": sound})
    np.testing.assert_array_equal(done.predict(long, truncate=True).splits[0].outputs, expected)


@pytest.mark.slow
def test_unaligned_sequences_for_a_model_of_aligned_ones(baseline: Callable[[str], Run], tmp_path: Path) -> None:
    done = baseline("mfn")
    single = one_sample(done.features, 1)
    single["audio"] = single["audio"][:-1]
    message = refused(lambda: done.predict(dump(tmp_path / "unaligned.pkl", single)))
    assert "was trained on aligned features" in message


def test_a_file_without_a_modality(decalign: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Absent is not zero: DecAlign is told so, and what stands there has no influence."""
    data = raw(decalign.features)
    silent = {name: {key: value for key, value in split.items() if not key.startswith("audio")}
              for name, split in data.items() if name != "generator"}
    with caplog.at_level(logging.WARNING, logger="MMSA"):
        found = outputs(decalign.predict(dump(tmp_path / "silent.pkl", silent)))
    assert "split 'test' has no audio" in caplog.text
    split = read_features(decalign.features).splits["test"]
    model = rebuilt(decalign)
    inputs = [torch.from_numpy(getattr(split, m)) for m in ("text", "audio", "vision")]
    lengths = {m: torch.from_numpy(steps) for m, steps in split.lengths.items()}
    with torch.no_grad():
        expected = model(*inputs, lengths=lengths, present={"audio": torch.zeros(41, dtype=torch.bool)})["M"]
        inputs[1] = torch.zeros_like(inputs[1])
        as_zeros = model(*inputs, lengths=lengths)["M"]
    assert_close(found, expected.numpy())
    assert np.abs(found - as_zeros.numpy()).max() > 1e-4
    nothing = dump(tmp_path / "nothing.pkl", {"text_bert": data["test"]["text_bert"]})
    assert "has none of text, audio and vision" in refused(lambda: decalign.predict(nothing))


@pytest.mark.slow
def test_a_baseline_misses_a_modality(baseline: Callable[[str], Run], tmp_path: Path) -> None:
    done = baseline("lf_dnn")
    data = {name: {key: value for key, value in split.items() if key != "audio"}
            for name, split in raw(done.features).items() if name != "generator"}
    assert "has no key 'audio'" in refused(lambda: done.predict(dump(tmp_path / "silent.pkl", data)))


# Choosing samples


def test_splits_and_samples(decalign: Run) -> None:
    everything = decalign.predict()
    assert [one.name for one in everything.splits] == ["train", "valid", "test"]
    assert [one.name for one in decalign.predict(splits=["all"]).splits] == ["train", "valid", "test"]
    some = decalign.predict(splits=["test", "valid"])
    assert [one.name for one in some.splits] == ["test", "valid"]
    np.testing.assert_array_equal(outputs(some, "valid"), outputs(everything, "valid"))
    ids = raw(decalign.features)["valid"]["id"]
    two = decalign.predict(samples=[ids[5], ids[2]])
    assert [one.ids for one in two.splits] == [[ids[2], ids[5]]]  # in the file's order
    assert "did you mean 'test'?" in refused(lambda: decalign.predict(splits=["tset"]))
    assert "is in split valid, not in test" in refused(lambda: decalign.predict(splits=["test"], samples=[ids[0]]))


def test_an_empty_split_hinders_no_other(decalign: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = raw(decalign.features)
    data["test"] = {key: value[:0] for key, value in data["test"].items()}
    file = dump(tmp_path / "no test.pkl", data)
    for options, names in (({"splits": ["train"]}, ["train"]), ({}, ["train", "valid"])):
        found = decalign.predict(file, **options)
        assert [one.name for one in found.splits] == names
        np.testing.assert_array_equal(outputs(found, "train"), outputs(decalign.predict(), "train"))
        assert ("nothing to predict for split 'test'" in caplog.text) == (not options)
    assert "split 'test' is empty" in refused(lambda: decalign.predict(file, splits=["test"]))
    assert "split 'test' is empty" in refused(lambda: decalign.predict(dump(file, {"test": data["test"]})))


# Models that cannot, or not quite


@pytest.mark.slow
def test_mctn_has_no_prediction_for_a_sample_unless_mended(
    baseline: Callable[..., Run], tmp_path: Path
) -> None:
    done = baseline("mctn")
    assert "train it with --mended" in refused(done.predict)
    repaired = train(tmp_path, "mctn", "mosi", done.features, overrides=small_settings("mctn"), mended=True)
    expected = outputs(repaired.predict(splits=["test"]))
    assert_test_run_comes_back(repaired)
    for size in (1, 7):
        assert_close(outputs(repaired.predict(splits=["test"], batch_size=size)), expected)


@pytest.mark.slow
def test_tfr_net_hides_the_steps_of_its_test_run(
    baseline: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    done = baseline("tfr_net")
    with caplog.at_level(logging.WARNING, logger="MMSA"):
        assert_test_run_comes_back(done)
    assert "is tested on incomplete data" in caplog.text
    row = 4
    alone = done.predict(samples=[raw(done.features)["test"]["id"][row]]).splits[0].outputs
    assert_close(alone, outputs(done.predict(splits=["test"]))[[row]])


def test_a_third_partys_model(toy: str, tiny: Path, tmp_path: Path) -> None:
    done = train(tmp_path, "toy", "synthetic", tiny)
    assert_test_run_comes_back(done)
    assert_close(outputs(done.predict(batch_size=1)), outputs(done.predict()))


@pytest.mark.slow
def test_classes(tmp_path: Path) -> None:
    data = make_synthetic(layout="iemocap4", samples=(40, 12, 14))
    done = train(tmp_path, "decalign", "iemocap4", dump(tmp_path / "four.pkl", data),
                 overrides={key: value for key, value in SMALL.items() if key != "conv_kernel_sizes"})
    found = done.predict(splits=["test"])
    assert found.classification
    assert found.class_names == done.record["classification"]["labels"]
    assert found.splits[0].outputs.shape == (14, 4)
    assert found.splits[0].metrics == {name: value for name, value in done.record["test"].items() if name != "Loss"}
    bare = {key: data["test"][key] for key in ("text", "audio", "vision")}
    (unlabelled,) = done.predict(dump(tmp_path / "bare.pkl", bare)).splits
    assert_close(unlabelled.outputs, found.splits[0].outputs)
    assert unlabelled.labels == [None] * 14


def test_predictions_that_are_no_numbers(decalign: Run, tmp_path: Path) -> None:
    state = torch.load(decalign.checkpoint, weights_only=True)
    torch.save({name: torch.full_like(value, torch.nan) if name.endswith("head.weight") else value
                for name, value in state.items()}, tmp_path / "nan.pth")
    with pytest.raises(RunError, match="41 of 41 predictions for split 'test' are not finite"):
        predict(tmp_path / "nan.pth", decalign.features, splits=["test"], device="cpu", record=decalign.path)


def test_nothing_of_this_process_changes(decalign: Run) -> None:
    import MMSA.run

    before, builder = torch.get_rng_state(), MMSA.run.AMIO
    decalign.predict()
    assert torch.equal(torch.get_rng_state(), before)
    assert MMSA.run.AMIO is builder
