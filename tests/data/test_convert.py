"""`mmsa data convert`: the same bits, no code, mapped, and taken wherever a pickle is."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from mmsa_decalign.cli import main
from mmsa_decalign.data.convert import KEPT, convert
from mmsa_decalign.data.overview import inspect_file
from mmsa_decalign.data.reading import read_features, read_file, sha256_of
from mmsa_decalign.data.schema import REQUIRED_KEYS, Features
from mmsa_decalign.errors import InputError


@pytest.fixture
def source(tmp_path: Path, layout: dict) -> Path:
    """Everything that a file can hold, some of it in float64, and -inf in audio."""
    for split in layout.values():
        rows = len(split["id"])
        split["text_lengths"] = [3] * rows
        split["vision"] = split["vision"].astype(np.float64) / 3
        split["audio"][0, 0, 0] = -np.inf
        split |= {f"regression_labels_{one}": np.full((rows, 1), 0.5, np.float32) for one in "TAV"}
        split["raw_text"][0] = "\u4f60\u597d, \ud83d and \n"  # half of a pair, which no encoding takes
    return dump(tmp_path / "features.pkl", layout)


def dump(path: Path, thing: Any) -> Path:
    path.write_bytes(pickle.dumps(thing))
    return path


def assert_same_features(one: Features, other: Features) -> None:
    """Every field of every split, bit for bit: a field that somebody adds is compared too."""
    for name, split in one.splits.items():
        for field in dataclasses.fields(split):
            a, b = getattr(split, field.name), getattr(other.splits[name], field.name)
            pairs = [(a[key], b[key]) for key in a] if isinstance(a, dict) else [(a, b)]
            assert not isinstance(a, dict) or list(a) == list(b)
            for left, right in pairs:
                if isinstance(left, np.ndarray):
                    assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
                else:
                    assert left == right, field.name


def test_a_round_trip_gives_the_same_bits(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "features.safetensors"
    convert(source, out)
    assert_same_features(read_features(source), read_features(out))
    again = tmp_path / "again.safetensors"
    convert(out, again)
    assert_same_features(read_features(out), read_features(again))


@pytest.mark.real_data
@pytest.mark.parametrize("fold", [0, 1])
def test_real_folds_bit_for_bit(real_fold: Any, fold: int, tmp_path: Path) -> None:
    convert(real_fold(fold), tmp_path / "fold.safetensors")
    assert_same_features(read_features(real_fold(fold)), read_features(tmp_path / "fold.safetensors"))


def test_the_safetensors_package_reads_the_same_tensors(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    convert(source, out)
    theirs, ours = load_file(out), read_file(out)
    assert sorted(theirs) == sorted(f"{split}/{key}" for split, content in ours.items() for key in content)
    for name, tensor in theirs.items():
        split, key = name.split("/")
        if key in ("id", "raw_text"):
            assert json.loads(tensor.tobytes()) == ours[split][key]
        else:
            assert (tensor.dtype, tensor.tobytes()) == (ours[split][key].dtype, ours[split][key].tobytes())
    with safe_open(out, framework="np") as file:
        assert json.loads(file.metadata()["mmsa_decalign.features"])["source_sha256"] == sha256_of(source)


def test_everything_that_is_read_is_kept(layout: dict, source: Path, tmp_path: Path) -> None:
    assert set(REQUIRED_KEYS) <= set(KEPT)
    assert convert(source, tmp_path / "x.safetensors")["kept"] == list(KEPT)  # the source has every key


def test_what_is_left_out_is_named(layout: dict, tmp_path: Path) -> None:
    layout["generator"] = {"seed": 1}
    layout["train"]["annotations"] = ["Positive"] * 5
    layout["test"]["text_lengths"] = None
    result = convert(dump(tmp_path / "x.pkl", layout), tmp_path / "x.safetensors")
    assert result["left_out"] == {"file": ["generator"], "train": ["annotations"]}
    assert result["samples"] == {"train": 5, "valid": 3, "test": 4}
    assert result["narrowed"] == []
    assert result["sha256"] == sha256_of(tmp_path / "x.safetensors")


def test_numbers_of_more_digits_are_named_and_read_as_a_training_reads_them(layout: dict, tmp_path: Path) -> None:
    for split in layout.values():
        split["text"] = split["text"].astype(np.float64) * np.pi
    result = convert(dump(tmp_path / "x.pkl", layout), tmp_path / "x.safetensors")
    assert result["narrowed"] == ["text"]
    np.testing.assert_array_equal(read_file(tmp_path / "x.safetensors")["train"]["text"],
                                  layout["train"]["text"].astype(np.float32))


def test_what_is_found_wrong_with_a_file_stays_so(layout: dict, tmp_path: Path) -> None:
    layout["train"]["vision"][1, 0, 0] = np.nan
    source, out = dump(tmp_path / "x.pkl", layout), tmp_path / "x.safetensors"
    convert(source, out)
    with pytest.raises(InputError, match="'vision' holds NaN or Inf"):
        read_features(out)
    before, after = inspect_file(source, probing=False), inspect_file(out, probing=False)
    assert after["refusal"] == before["refusal"]
    assert after["findings"] == before["findings"]
    assert after["splits"]["train"]["modalities"] == before["splits"]["train"]["modalities"]


def test_every_command_takes_it(source: Path, layout: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.safetensors"
    assert main(["data", "convert", str(source), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(out)
    assert main(["data", "inspect", str(out), "--no-probe"]) == 0
    assert main(["data", "verify", str(out)]) == 1  # reads, and nobody published it
    assert "train 5" in capsys.readouterr().out
    for modality in ("text", "audio", "vision"):
        features = read_features(source, **{modality: out})
        assert_same_features(features, read_features(source))
        assert features.overrides == {modality: sha256_of(out)}


def test_a_file_of_one_modality_converts_and_replaces_it(source: Path, layout: dict, tmp_path: Path) -> None:
    parts = {name: {"audio": split["audio"][:, :, :2] * 2, "id": split["id"]} for name, split in layout.items()}
    part = dump(tmp_path / "audio.pkl", parts)
    assert convert(part, tmp_path / "audio.safetensors")["kept"] == ["id", "audio"]
    assert_same_features(read_features(source, audio=part), read_features(source, audio=tmp_path / "audio.safetensors"))


def test_a_table_for_people(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "convert", str(source), str(tmp_path / "x.safetensors")]) == 0
    out = capsys.readouterr().out
    for text in ("x.safetensors", "train 5, valid 3, test 4", "text_bert", "float64 to float32: vision", "SHA-256: "):
        assert text in out


def test_arrays_are_mapped_private_and_writable(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    convert(source, out)
    before = out.read_bytes()
    split = read_features(out).splits["train"]
    base = split.text
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert split.text.flags.writeable  # torch warns of memory that it may not write
    split.text[:] = 7
    assert out.read_bytes() == before


# Places


def test_only_converted_files_are_overwritten(source: Path, layout: dict, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    for content in (b"mine", b"", source.read_bytes()):
        out.write_bytes(content)
        with pytest.raises(InputError, match="is there already and was not written by"):
            convert(source, out)
        assert out.read_bytes() == content
    out.unlink()
    convert(source, out)
    first = out.read_bytes()
    layout["train"]["text"] += 1
    convert(dump(tmp_path / "y.pkl", layout), out)
    assert out.read_bytes() != first
    with pytest.raises(InputError, match="is the file to be converted"):
        convert(out, out)
    with pytest.raises(InputError, match=r"expected a name that ends in .safetensors"):
        convert(source, tmp_path / "x.pkl")


def test_the_same_content_gives_the_same_file(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "a.safetensors")
    convert(source, tmp_path / "b.safetensors")
    assert sha256_of(tmp_path / "a.safetensors") == sha256_of(tmp_path / "b.safetensors")


def test_nothing_is_left_of_a_write_that_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmsa_decalign.data.convert.write_mapped", half)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        convert(source, tmp_path / "x.safetensors")
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_is_replaced_and_not_followed(source: Path, tmp_path: Path) -> None:
    kept, link = tmp_path / "kept.safetensors", tmp_path / "link.safetensors"
    convert(source, kept)
    before = kept.read_bytes()
    link.symlink_to(kept)
    convert(dump(tmp_path / "y.pkl", {**read_plain(source), "note": 1}), link)
    assert not link.is_symlink()
    assert kept.read_bytes() == before
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="is there already"):
        convert(source, tmp_path / "dangling.safetensors")


def read_plain(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def test_who_may_read_the_source_may_read_the_result(source: Path, tmp_path: Path) -> None:
    for mode in (0o640, 0o604):
        source.chmod(mode)
        convert(source, tmp_path / "x.safetensors")
        assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode


# What is wrong with a file


def test_a_source_without_features_is_refused(layout: dict, tmp_path: Path) -> None:
    for split in layout.values():
        for key in ("text", "audio", "vision"):
            del split[key]
    with pytest.raises(InputError, match="holds none of text, audio, vision"):
        convert(dump(tmp_path / "x.pkl", layout), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="holds a list, not a dictionary"):
        convert(dump(tmp_path / "x.pkl", [1]), tmp_path / "x.safetensors")


def test_damage_is_named(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    convert(source, out)
    whole = out.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:8 + length])

    def refusal(content: bytes) -> str:
        out.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_features(out)
        assert len(str(caught.value).splitlines()) == 2
        return str(caught.value)

    def changed(name: str, **entry: Any) -> bytes:
        text = json.dumps({**header, name: {**header[name], **entry}}).encode()
        return len(text).to_bytes(8, "little") + text + whole[8 + length:]

    assert f"is cut short after {len(whole) - 1} bytes" in refusal(whole[:-1])
    assert "is cut short after 20 bytes" in refusal(whole[:20])
    assert "goes on" in refusal(whole + b"x")
    assert "damaged header" in refusal(changed("train/text", shape=[5, 4, 7]))
    assert "damaged header" in refusal(changed("train/text", shape=[5, -4, -6]))
    assert "damaged header" in refusal(changed("train/text", dtype="BF16"))
    assert "damaged header" in refusal(changed("train/text", data_offsets=header["test/text"]["data_offsets"]))
    same_size = header["train/vision_lengths"]["data_offsets"]
    assert "damaged header" in refusal(changed("train/audio_lengths", data_offsets=same_size))
    later = json.dumps({"version": 2, "source_sha256": "x"})
    assert "not of features" in refusal(changed("__metadata__", **{"mmsa_decalign.features": later}))
    assert "damaged header" in refusal(changed("__metadata__", **{"mmsa_decalign.features": "["}))
    header["__metadata__"] = {"format": "pt"}  # of torch
    assert "not of features" in refusal(changed("__metadata__"))
    assert "a header of" in refusal((1 << 30).to_bytes(8, "little") + whole[8:])
    out.write_bytes(whole)
    read_features(out)


# Memory

MEASURE = """
import resource
import MMSA, torch  # what takes memory before a file is read
from mmsa_decalign.harness.datasets import load_features, make_splits
from pathlib import Path
path = Path({path!r})
have = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (have + int({allowed}),) * 2)
anonymous = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) << 10
before = anonymous()
features = load_features(path, {{}})
splits = make_splits({{"model_name": "decalign", "use_bert": False}}, features)
total = sum(float(splits["train"][i]["text"].sum()) for i in range(0, len(splits["train"]), 50))
print(anonymous() - before, total)
"""


def in_little_memory(path: Path, allowed: float) -> tuple[int, float]:
    """Read a file and make its splits in a process that may take `allowed` more bytes than it has then."""
    code = MEASURE.format(path=str(path), allowed=allowed)
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=alone, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    taken, total = done.stdout.split()
    return int(taken), float(total)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_no_two_copies_of_the_features_are_held(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {}
    for split, rows in (("train", 700), ("valid", 30), ("test", 70)):
        data[split] = {"id": [f"{split}{i}" for i in range(rows)], "raw_text": ["x"] * rows,
                       "regression_labels": np.linspace(-3, 3, rows), "audio": np.ones((rows, 50, 5), np.float32),
                       "vision": np.ones((rows, 50, 5), np.float32),
                       "text": rng.standard_normal((rows, 50, 768), dtype=np.float32)}  # MOSEI's, of fewer samples
    source, out = tmp_path / "x.pkl", tmp_path / "x.safetensors"
    content = pickle.dumps(data, protocol)
    if protocol == 3:  # in one frame, as Python 3.6 and before wrote protocol 4
        content = b"\x80\x04\x95" + (len(content) - 2).to_bytes(8, "little") + content[2:]
    source.write_bytes(content)
    size = source.stat().st_size
    assert size > 100 << 20
    taken, total = in_little_memory(source, 1.4 * size)
    assert taken < 1.2 * size
    if protocol == 4:
        convert(source, out)
        mapped, same = in_little_memory(out, 1.4 * size)  # addresses count, pages of the file do not
        assert mapped < 0.1 * size
        assert same == total
