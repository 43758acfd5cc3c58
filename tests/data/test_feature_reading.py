"""Reading files: bit for bit what pickle reads, nothing that runs, and a sentence for every broken download."""

from __future__ import annotations

import collections
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsa_decalign.data.reading import read_features, read_file, sha256_of
from mmsa_decalign.errors import InputError


@pytest.fixture
def file(tmp_path, layout) -> Path:
    return dump(tmp_path / "features.pkl", layout)


def dump(path: Path, thing: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(thing, protocol=protocol))
    return path


def refused(path: Path, **overrides: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_features(path, **overrides)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    for jargon in ("load key", "Ran out", "opcode", "Traceback", "Error"):
        assert jargon not in message
    return message


def assert_same(got: Any, expected: Any) -> None:
    """Equal in type, dtype, shape and every bit."""
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, np.ndarray):
        assert (got.dtype, got.shape, got.flags.f_contiguous) == (
            expected.dtype, expected.shape, expected.flags.f_contiguous)
        if expected.dtype == object:
            assert got.tolist() == expected.tolist()
        else:
            assert got.tobytes() == expected.tobytes()
    else:
        assert got == expected


# What is let in


@pytest.mark.real_data
@pytest.mark.parametrize("fold", [0, 1])
def test_real_folds_bit_for_bit(real_fold, fold):
    path = real_fold(fold)
    with path.open("rb") as opened:
        plain = pickle.load(opened)
    assert_same(read_file(path), plain)
    features = read_features(path)
    assert features.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert features.feature_dims == (100, 73, 100)
    assert features.seq_lens == (1, 1, 1)
    for name, split in features.splits.items():
        for key in ("text", "audio", "vision", "text_bert"):
            assert_same(getattr(split, key), plain[name][key])
        assert_same(split.labels, plain[name]["regression_labels"])
        assert split.ids == plain[name]["id"]
        assert split.raw_text == plain[name]["raw_text"]
        for lengths in split.lengths.values():
            assert lengths.tolist() == [1] * len(split)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_and_kind_of_content(tmp_path, protocol):
    rng = np.random.default_rng(0)
    thing = {
        "arrays": {
            "float32": rng.normal(size=(3, 2, 4)).astype(np.float32),
            "fortran": np.asfortranarray(rng.normal(size=(3, 2))),
            "big endian": np.arange(3, dtype=">i4"),
            "strings": np.array(["ab", "c"]),
            "objects": np.array(["ab", "c"], dtype=object),
            "empty": np.zeros((0, 3)),
        },
        "scalars": [np.float32(1.5), np.int64(3), np.bool_(True), np.str_("x"), 2.5, 7, None, True, 1 + 2j],
        "containers": [(1, 2), {1, 2}, frozenset({3}), [4], b"bytes \xff", bytearray(b"x"), "text \u4f60"],
        "ordered": collections.OrderedDict(a=1),
    }
    path = dump(tmp_path / "all.pkl", thing, protocol)
    assert_same(read_file(path), pickle.loads(path.read_bytes()))


@pytest.mark.parametrize("flags", [b"K\x00K\x01", b"K\x00\x88"])  # 0, 1: NumPy 2.4.0 to 2.4.4 warn; 0, True: 2.4 does
def test_pickles_of_old_numpy_are_read_without_a_warning(tmp_path, flags):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    new = pickle.dumps(array, protocol=2)
    old = new.replace(b"numpy._core", b"numpy.core").replace(b"\x89\x88\x87", flags + b"\x87")
    assert old.count(flags + b"\x87") == 1
    path = tmp_path / "old.pkl"
    path.write_bytes(old)
    assert_same(read_file(path), array)


@pytest.mark.parametrize("protocol", [4, 5])
def test_arrays_come_as_torch_wants_them(tmp_path, layout, protocol):
    """A copy for rows, byte order or leave to write would otherwise be made later and held beside the file's."""
    for split in layout.values():
        split["text"] = np.asfortranarray(split["text"])
        split["audio"] = split["audio"].astype(">f4")
        split["vision"].flags.writeable = False
    features = read_features(dump(tmp_path / "x.pkl", layout, protocol))
    for name, split in features.splits.items():
        for key in ("text", "audio", "vision"):
            array = getattr(split, key)
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert array.dtype.isnative
            np.testing.assert_array_equal(array, layout[name][key])


def test_hash_of_the_main_file(file):
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert sha256_of(file) == expected
    assert read_features(str(file)).sha256 == expected
    assert read_features(file).path == file


# What is not let in


class Calls:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_something(tmp_path, protocol):
    trace = tmp_path / "trace"
    path = dump(tmp_path / "evil.pkl", {"train": Calls(os.mkdir, str(trace))}, protocol)
    message = refused(path)
    assert f"asks for {os.mkdir.__module__}.mkdir" in message
    assert str(path) in message
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()  # the trap does work


@pytest.mark.parametrize("function", [eval, getattr, __import__, np.load, np.save, collections.Counter, pickle.loads])
def test_other_names_are_refused(tmp_path, function):
    path = dump(tmp_path / "evil.pkl", Calls(function, "x"))
    assert f".{function.__name__}; only containers" in refused(path)


def test_references_out_of_the_file(tmp_path):
    path = tmp_path / "torch.pkl"
    path.write_bytes(b"\x80\x02X\x01\x00\x00\x00aQ.")  # PERSID, as in a torch checkpoint
    assert "refers to data outside itself" in refused(path)


# Files that are no feature files


def test_missing_file_and_folder(tmp_path):
    message = refused(tmp_path / "nothing.pkl")
    assert str(tmp_path / "nothing.pkl") in message
    assert "mmsa data synth" in message
    assert "is a folder" in refused(tmp_path)


CONTENTS = {
    b"": "is empty (0 bytes)",
    b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>": "is a web page",
    b"\n  <html><head>": "is a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n": "is a Git LFS pointer",
    b"PK\x03\x04 and more": "is a zip archive (or a torch checkpoint)",
    b"\x1f\x8b and more": "is a gzip archive",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file",
    b"\x93NUMPY\x01\x00": "is a single NumPy array (.npy)",
    b"id,text,label\n1,good,1\n": "is not a readable pickle",
    b"\x00\x01\x02": "is not a readable pickle",
    b"\x80\x04": "is cut short after 2 bytes",
    b"\x80\x04.": "is not a readable pickle",
    b"\x80\x02U\x01\xff.": "holds strings of Python 2",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_wrong_content_is_named(tmp_path, content):
    path = tmp_path / "wrong.pkl"
    path.write_bytes(content)
    message = refused(path)
    assert f"{path}: {CONTENTS[content]}" in message


def test_a_file_cut_anywhere(file):
    whole = file.read_bytes()
    for size in range(2, len(whole) - 1, 37):
        file.write_bytes(whole[:size])
        if whole[size - 1] != ord("."):
            assert f"is cut short after {size} bytes" in refused(file)
        else:
            refused(file)


def test_a_damaged_file_is_read_or_refused_but_never_a_traceback(file):
    whole = file.read_bytes()
    rng = np.random.default_rng(1)
    outcomes = collections.Counter()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        file.write_bytes(bytes(damaged))
        try:
            read_features(file)
            outcomes["read"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 20
    assert outcomes["read"] > 20  # a changed number is still a number


def test_a_file_that_may_not_be_read(file, monkeypatch):
    def forbidden(self, *args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # mode bits would not stop root
    assert f"{file}: cannot be read (Permission denied)" in refused(file)


def test_faults_inside_name_the_file(file, layout):
    layout["train"].pop("vision")
    assert f"{dump(file, layout)}: split 'train' has no key 'vision'" in refused(file)


# Override files


def override(tmp_path: Path, layout: dict, modality: str, **changes: Any) -> Path:
    """A file with one modality alone, twice as wide and all of length 2 (its own lengths), for each split."""
    data = {}
    for name, split in layout.items():
        wide = np.concatenate([split[modality], split[modality]], axis=2)
        data[name] = {"id": list(split["id"]), modality: wide, f"{modality}_lengths": [2] * len(wide)}
        data[name] |= {key: value for key, value in changes.items() if value is not None}
        for key, value in changes.items():
            if value is None:
                data[name].pop(key)
    return dump(tmp_path / f"{modality}.pkl", data)


def test_an_override_brings_its_own_lengths(tmp_path, file, layout):
    before = read_features(file).splits["test"]
    audio = override(tmp_path, layout, "audio")
    features = read_features(file, audio=audio)
    split = features.splits["test"]
    assert features.feature_dims == (6, 6, 2)
    assert split.lengths["audio"].tolist() == [2] * 4
    np.testing.assert_array_equal(split.audio[:, :, :3], before.audio)
    np.testing.assert_array_equal(split.vision, before.vision)
    assert split.lengths["vision"].tolist() == before.lengths["vision"].tolist()
    assert features.sha256 == sha256_of(file)
    assert features.overrides == {"audio": sha256_of(audio)}


def test_all_three_overrides_and_text_brings_its_own_tokens(tmp_path, file, layout):
    files = {m: override(tmp_path, layout, m) for m in ("text", "audio", "vision")}
    features = read_features(file, **files)
    assert features.feature_dims == (12, 6, 4)
    assert features.splits["train"].text_bert is None  # the main file's tokens belong to the text that was replaced
    assert features.splits["train"].lengths["text"].tolist() == [2] * 5
    assert sorted(features.overrides) == ["audio", "text", "vision"]


def test_without_lengths_in_the_override_trailing_zeros_count(tmp_path, file, layout):
    expected = [int((np.abs(x).sum(axis=1) > 0).sum()) for x in layout["test"]["vision"]]
    layout["test"]["vision_lengths"] = [4] * 4  # of the main file: must not be used
    dump(file, layout)
    features = read_features(file, vision=override(tmp_path, layout, "vision", vision_lengths=None))
    assert features.splits["test"].lengths["vision"].tolist() == expected


def test_an_override_that_does_not_fit(tmp_path, file, layout):
    audio = override(tmp_path, layout, "audio", audio=np.ones((3, 4, 3)), audio_lengths=[1, 1, 1], id=None)
    message = refused(file, audio=audio)
    assert "split 'train' has keys of different row counts" in message
    assert "audio 3" in message
    assert str(audio) in message
    vision = override(tmp_path, layout, "vision", vision=None)
    assert f"{vision}: split 'train' has no key 'vision'" in refused(file, vision=vision)
    assert "no such feature file" in refused(file, text=tmp_path / "absent.pkl")
    assert f"{dump(tmp_path / 'list.pkl', [1])}: holds a list" in refused(file, text=tmp_path / "list.pkl")


def test_an_override_with_nan_is_named_itself(tmp_path, file, layout):
    layout["valid"]["audio"][1, 0, 0] = np.nan
    audio = override(tmp_path, layout, "audio")
    message = refused(file, audio=audio)
    assert message.startswith(f"{audio}: split 'valid', key 'audio' holds NaN or Inf (2 values)")


def test_an_override_in_another_order_is_paired_by_id(tmp_path, file, layout):
    for split in layout.values():  # every row is told from the others
        split["audio"] = split["audio"] + np.arange(len(split["id"]))[:, None, None]
    dump(file, layout)
    shuffled = {name: {key: value[::-1] for key, value in split.items()} for name, split in layout.items()}
    lengths = {name: list(range(1, len(split["id"]) + 1)) for name, split in layout.items()}
    for name, split in shuffled.items():
        split["audio_lengths"] = [min(length, split["audio"].shape[1]) for length in lengths[name]]
    source = dump(tmp_path / "fet.pkl", {
        name: {key: split[key] for key in ("id", "audio", "audio_lengths")} for name, split in shuffled.items()})
    paired = read_features(file, audio=source)
    for name, split in paired.splits.items():
        np.testing.assert_array_equal(split.audio, layout[name]["audio"].astype(np.float32))
        assert split.lengths["audio"].tolist() == shuffled[name]["audio_lengths"][::-1]
    by_position = read_features(file, audio=override(tmp_path, shuffled, "audio", id=None))
    np.testing.assert_array_equal(by_position.splits["test"].audio[0, :, :3], layout["test"]["audio"][3])


def test_an_override_without_some_of_the_samples(tmp_path, file, layout):
    cut = {name: {key: value[1:] for key, value in split.items()} for name, split in layout.items()}
    message = refused(file, audio=override(tmp_path, cut, "audio"))
    assert "split 'train' lacks 1 of the 5 samples" in message
    assert "'train$_$0' first; its own look like 'train$_$1'" in message
    more = {name: {key: [*value, value[0]] for key, value in split.items()} for name, split in layout.items()}
    for split in more.values():
        split["id"] = [*split["id"][:-1], "another"]
    source = dump(tmp_path / "more.pkl", {name: {key: split[key][::-1] for key in ("id", "audio")}
                                          for name, split in more.items()})
    np.testing.assert_array_equal(read_features(file, audio=source).splits["test"].audio,
                                  read_features(file).splits["test"].audio)
    twice = {name: {"id": [split["id"][1], *split["id"][1:], split["id"][0]],
                    "audio": [*split["audio"], split["audio"][0]]} for name, split in layout.items()}
    assert "has the same id twice" in refused(file, audio=dump(tmp_path / "twice.pkl", twice))


@pytest.mark.parametrize("which", ["main", "other"])
def test_pairing_by_id_names_the_ids_that_occur_twice(which, tmp_path, file, layout):
    twice = {name: {**split, "id": [split["id"][0], *split["id"][:1], *split["id"][2:]]}
             for name, split in layout.items()}
    paths = [file, override(tmp_path, twice, "audio")]
    if which == "main":
        paths = [dump(tmp_path / "main.pkl", twice), override(tmp_path, layout, "audio")]
    message = refused(paths[0], audio=paths[1])
    assert f"{paths[which == 'other']}: split 'train' has the same id twice ('train$_$0')" in message
    assert "lacks" not in message
    by_position = read_features(dump(tmp_path / "both.pkl", twice), audio=override(tmp_path, twice, "audio"))
    assert len(by_position.splits["train"]) == 5
