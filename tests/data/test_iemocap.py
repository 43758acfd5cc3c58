"""IEMOCAP files: raw releases converted, classes and their names kept, inspected, and made for a try."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsa_decalign.cli import main
from mmsa_decalign.data.convert import convert
from mmsa_decalign.data.iemocap import LABEL_NAMES, is_raw, splits_of
from mmsa_decalign.data.leaks import video_of
from mmsa_decalign.data.overview import inspect_file
from mmsa_decalign.data.reading import read_features, read_file
from mmsa_decalign.data.synthetic import make_synthetic, write_synthetic
from mmsa_decalign.errors import InputError

WIDTHS = {"text": 5, "audio": 3, "vision": 4}
DIALOGUES = [f"Ses0{session}{who}_impro0{number}" for session in range(1, 6) for who in "FM" for number in (1, 2)]


def release(classes: int = 6, *, dialogues: list[str] = DIALOGUES, session_of_test: str = "Ses05") -> dict[str, Any]:
    """The parts of a release: three to five utterances a dialogue, every class in every dialogue's reach."""
    rng = np.random.default_rng(3)
    parts: dict[str, Any] = {name: {} for name in ("ids", "speakers", "labels", "text", "audio", "vision", "sentences")}
    for number, vid in enumerate(dialogues):
        rows = 3 + number % 3
        parts["ids"][vid] = [f"{vid}_{'FM'[i % 2]}{i:03d}" for i in range(rows)]
        parts["speakers"][vid] = ["FM"[i % 2] for i in range(rows)]
        parts["labels"][vid] = [(number + i) % classes for i in range(rows)]
        parts["sentences"][vid] = [f"said {vid} {i}" for i in range(rows)]
        for modality, width in WIDTHS.items():
            parts[modality][vid] = [rng.standard_normal(width).astype(np.float32) for _ in range(rows)]
    parts["train"] = {vid for vid in dialogues if not vid.startswith(session_of_test)}
    parts["test"] = {vid for vid in dialogues if vid.startswith(session_of_test)}
    return parts


def nine(parts: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(parts[name] for name in (
        "ids", "speakers", "labels", "text", "audio", "vision", "sentences", "train", "test"))


def six(parts: dict[str, Any]) -> list[Any]:
    return [parts[name] for name in ("ids", "labels", "speakers", "sentences", "train", "test")]


def dump(path: Path, thing: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(thing, protocol=2))
    return path


# Raw releases


@pytest.mark.parametrize(("classes", "kind"), [(6, tuple), (6, list), (4, tuple)])
def test_a_raw_release_becomes_three_splits(classes: int, kind: type, tmp_path: Path) -> None:
    parts = release(classes)
    source = dump(tmp_path / "IEMOCAP_features_raw.pkl", kind(nine(parts)))
    out = tmp_path / "iemocap_data.safetensors"
    result = convert(source, out)
    features = read_features(out)
    names = LABEL_NAMES[classes]
    for name, session in (("train", ("Ses01", "Ses02", "Ses03")), ("valid", ("Ses04",)), ("test", ("Ses05",))):
        split = features.splits[name]
        vids = sorted(vid for vid in DIALOGUES if vid.startswith(session))
        expected = [(vid, i) for vid in vids for i in range(len(parts["ids"][vid]))]
        assert split.ids == [f"{vid}$_${parts['ids'][vid][i]}" for vid, i in expected]
        assert split.raw_text == [parts["sentences"][vid][i] for vid, i in expected]
        assert split.labels is None
        assert split.classes.dtype == np.int64
        assert split.classes.tolist() == [parts["labels"][vid][i] for vid, i in expected]
        assert split.class_names == {k: names[k] for k in sorted(set(split.classes.tolist()))}
        for modality, width in WIDTHS.items():
            array = getattr(split, modality)
            assert array.shape == (len(expected), 1, width)
            assert np.array_equal(array[:, 0], [parts[modality][vid][i] for vid, i in expected])
    assert f"{classes} classes (happy, sad, neutral, angry" in result["raw"][0]
    assert "12 dialogues for training, 4 for validation (session 4), 4 for the test" in result["raw"][0]


def test_no_dialogue_is_in_two_splits(tmp_path: Path) -> None:
    convert(dump(tmp_path / "raw.pkl", nine(release())), tmp_path / "x.safetensors")
    splits = read_features(tmp_path / "x.safetensors").splits
    vids = {name: {video_of(one) for one in split.ids} for name, split in splits.items()}
    assert sum(map(len, vids.values())) == len(set().union(*vids.values())) == len(DIALOGUES)
    assert vids["test"] == release()["test"]


def test_without_sessions_a_seeded_tenth_of_the_dialogues_validates() -> None:
    dialogues = [f"talk{number:02d}" for number in range(40)]
    parts = release(dialogues=dialogues, session_of_test="talk3")
    splits, lines = splits_of(nine(parts), Path("x.pkl"))
    again, _ = splits_of(nine(parts), Path("x.pkl"))
    assert splits["valid"]["id"] == again["valid"]["id"]
    valid, train = ({video_of(one) for one in splits[name]["id"]} for name in ("valid", "train"))
    assert len(valid) == 3  # of 30
    assert not valid & train
    assert valid | train == parts["train"]
    assert "a tenth drawn with seed" in lines[0]


def features_folder(root: Path, parts: dict[str, Any]) -> None:
    """As GCNet has it: one .npy an utterance, steps in some, and folders of faces for vision."""
    for vid, uids in parts["ids"].items():
        for i, uid in enumerate(uids):
            for modality, name in (("text", "deberta-large-4-UTT"), ("audio", "wav2vec-large-c-UTT")):
                vector = parts[modality][vid][i]
                rows = np.stack([vector - 1, vector + 1]) if i == 1 else vector[None]
                (root / name).mkdir(parents=True, exist_ok=True)
                np.save(root / name / f"{uid}.npy", rows)
            faces = root / "manet_UTT" / uid
            faces.mkdir(parents=True)
            other = "FM"[(i + 1) % 2]
            np.save(faces / f"{other}.npy", np.full(WIDTHS["vision"], 99, np.float32))
            if i != 2:
                np.save(faces / f"{parts['speakers'][vid][i]}.npy", parts["vision"][vid][i])


def test_a_release_with_its_features_in_folders(tmp_path: Path) -> None:
    parts = release()
    source = dump(tmp_path / "IEMOCAP_features_raw_6way.pkl", six(parts))
    features_folder(tmp_path / "features", parts)
    result = convert(source, tmp_path / "x.safetensors")
    test = read_features(tmp_path / "x.safetensors").splits["test"]
    where = [(vid, i) for vid in sorted(parts["test"]) for i in range(len(parts["ids"][vid]))]
    for modality in ("text", "audio"):
        expected = [parts[modality][vid][i] for vid, i in where]
        assert np.allclose(getattr(test, modality)[:, 0], expected, atol=1e-6)
    expected = [np.zeros(4) if i == 2 else parts["vision"][vid][i] for vid, i in where]
    assert np.allclose(test.vision[:, 0], expected, atol=1e-6)
    assert f"zeros for {len(DIALOGUES)} utterances that do not show their speaker" in result["raw"][-1]


def test_a_release_without_its_features_says_where_they_should_be(tmp_path: Path) -> None:
    source = dump(tmp_path / "IEMOCAP_features_raw_4way.pkl", six(release(4)))
    with pytest.raises(InputError, match="holds labels and no features.*features/deberta-large-4-UTT"):
        convert(source, tmp_path / "x.safetensors")


class Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Strings and bytes as Python 2 wrote them: one kind, of bytes."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_old(self, thing: str | bytes) -> None:
        data = thing if isinstance(thing, bytes) else thing.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(thing)

    dispatch[str] = dispatch[bytes] = save_old


def test_a_release_pickled_by_python_2(tmp_path: Path) -> None:
    parts = release()
    parts["sentences"][DIALOGUES[0]][0] = "caf\xe9"
    source = tmp_path / "old.pkl"
    with source.open("wb") as file:
        Python2(file, protocol=2).dump(nine(parts))
    with pytest.raises(InputError, match="strings of Python 2"):
        read_file(source)
    convert(source, tmp_path / "old.safetensors")
    convert(dump(tmp_path / "new.pkl", nine(parts)), tmp_path / "new.safetensors")
    old, new = (read_file(tmp_path / f"{name}.safetensors") for name in ("old", "new"))
    for split in new:
        assert old[split].keys() == new[split].keys()
        assert all(np.array_equal(old[split][key], new[split][key]) for key in new[split])
    assert "caf\xe9" in new["train"]["raw_text"]


def overlap(parts: dict[str, Any]) -> None:
    parts["test"].add(DIALOGUES[0])


def without_label(parts: dict[str, Any]) -> None:
    parts["labels"][DIALOGUES[1]][0] = -1


def text_label(parts: dict[str, Any]) -> None:
    parts["labels"][DIALOGUES[1]][0] = "hap"


def half_label(parts: dict[str, Any]) -> None:
    parts["labels"][DIALOGUES[1]][0] = 1.5


def fewer_sentences(parts: dict[str, Any]) -> None:
    parts["sentences"][DIALOGUES[2]].pop()


def no_audio(parts: dict[str, Any]) -> None:
    del parts["audio"][DIALOGUES[2]]


def unknown_dialogue(parts: dict[str, Any]) -> None:
    parts["train"].add("Ses09F_x")


def one_dialogue(parts: dict[str, Any]) -> None:
    parts["train"] = {DIALOGUES[0]}


def text_feature(parts: dict[str, Any]) -> None:
    parts["text"][DIALOGUES[0]][0] = ["a"] * 5


def other_width(parts: dict[str, Any]) -> None:
    parts["text"][DIALOGUES[0]] = [row[:3] for row in parts["text"][DIALOGUES[0]]]


def other_width_inside(parts: dict[str, Any]) -> None:
    parts["text"][DIALOGUES[0]][0] = np.zeros(9, np.float32)


def no_dictionary(parts: dict[str, Any]) -> None:
    parts["labels"] = 3


def no_test(parts: dict[str, Any]) -> None:
    parts["test"] = set()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (overlap, f"dialogue '{DIALOGUES[0]}' is in train and in test"),
        (without_label, "has the label -1; expected a whole number from 0 to 5"),
        (text_label, "has the label 'hap'; expected a whole number"),
        (half_label, "expected whole numbers"),
        (fewer_sentences, "has 5 utterances and 4 of sentences"),
        (no_audio, "has 5 utterances and none of audio"),
        (unknown_dialogue, "dialogue 'Ses09F_x' of train has no utterances"),
        (one_dialogue, "train has one dialogue"),
        (text_feature, "features are not numbers, or of different widths"),
        (other_width, "text has another width in some dialogues"),
        (other_width_inside, "features are not numbers, or of different widths"),
        (no_dictionary, "part 3 of 9 is a int; expected labels as a dictionary"),
        (no_test, "test has no dialogue"),
    ],
)
def test_a_release_that_cannot_be_used(spoil: Callable[..., None], message: str, tmp_path: Path) -> None:
    parts = release()
    spoil(parts)
    source, out = dump(tmp_path / "raw.pkl", nine(parts)), tmp_path / "x.safetensors"
    with pytest.raises(InputError) as caught:
        convert(source, out)
    assert message in str(caught.value)
    assert str(source) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert not out.exists()


def object_array(folder: Path, uid: str) -> None:
    np.save(folder / "deberta-large-4-UTT" / f"{uid}.npy", np.array([print], dtype=object), allow_pickle=True)


def huge_array(folder: Path, uid: str) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }"
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    (folder / "deberta-large-4-UTT" / f"{uid}.npy").write_bytes(
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 16)


def short_file(folder: Path, uid: str) -> None:
    (folder / "deberta-large-4-UTT" / f"{uid}.npy").write_bytes(b"\x93NUMPY")


def no_file(folder: Path, uid: str) -> None:
    (folder / "deberta-large-4-UTT" / f"{uid}.npy").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(object_array, "is no array of numbers"), (huge_array, "is no array of numbers"),
     (short_file, "is no array of numbers"), (no_file, "has neither")],
)
def test_feature_files_that_cannot_be_used(spoil: Callable[..., None], message: str, tmp_path: Path) -> None:
    parts = release()
    source = dump(tmp_path / "raw.pkl", six(parts))
    features_folder(tmp_path / "features", parts)
    spoil(tmp_path / "features", parts["ids"][DIALOGUES[3]][0])
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "x.safetensors")


def test_names_of_utterances_do_not_lead_elsewhere(tmp_path: Path) -> None:
    parts = release()
    features_folder(tmp_path / "features", parts)
    parts["ids"][DIALOGUES[0]][0] = "../../secret"
    with pytest.raises(InputError, match="is no name of an utterance"):
        convert(dump(tmp_path / "raw.pkl", six(parts)), tmp_path / "x.safetensors")


class Hostile:
    def __reduce__(self) -> Any:
        return (print, ("harm",))


def test_a_release_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = release()
    parts["sentences"][DIALOGUES[0]][0] = Hostile()
    with pytest.raises(InputError, match=r"asks for builtins.print|asks for __builtin__.print"):
        convert(dump(tmp_path / "raw.pkl", nine(parts)), tmp_path / "x.safetensors")
    assert capsys.readouterr().out == ""


def test_what_is_a_release() -> None:
    assert is_raw(nine(release()))
    assert is_raw(six(release()))
    assert not is_raw({"train": {}, "valid": {}, "test": {}})
    assert not is_raw([1, 2, 3, 4, 5, 6])
    assert not is_raw(tuple(range(9)))


def test_a_release_that_was_not_converted_is_pointed_to_conversion(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="raw IEMOCAP release, `mmsa data convert`"):
        read_features(dump(tmp_path / "raw.pkl", nine(release())))


def test_the_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = dump(tmp_path / "raw.pkl", nine(release())), tmp_path / "x.safetensors"
    assert main(["data", "convert", str(source), str(out)]) == 0
    assert "4 for validation (session 4)" in capsys.readouterr().out
    assert main(["data", "convert", str(source), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["raw"]


# Files of classes


def test_conversion_keeps_classes_and_their_names(tmp_path: Path) -> None:
    source = write_synthetic(tmp_path / "x.pkl", layout="iemocap4", samples=(40, 12, 12))
    convert(source, tmp_path / "x.safetensors")
    one, other = read_features(source), read_features(tmp_path / "x.safetensors")
    for name, split in one.splits.items():
        assert np.array_equal(split.classes, other.splits[name].classes)
        assert split.class_names == other.splits[name].class_names != {}
        assert split.labels is other.splits[name].labels is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["hap", "sad"] * 20, "key 'classification_labels' has dtype <U3; expected one whole number from 0"),
        ([0.5, 1] * 20, "key 'classification_labels' holds 0.5; expected one whole number"),
        ([-1, 1] * 20, "holds -1; expected"),
        ([float("nan"), 1] * 20, "holds nan; expected"),
        ([1e30, 1] * 20, "holds 1e+30; expected"),
        ([[1, 0]] * 40, "has shape (40, 2)"),
        ([0, 1] * 19, "keys of different row counts"),
    ],
)
def test_labels_that_are_no_classes(labels: list[Any], message: str, tmp_path: Path) -> None:
    data = make_synthetic(layout="iemocap4", samples=(40, 12, 12))
    data["train"]["classification_labels"] = np.array(labels)
    with pytest.raises(InputError) as caught:
        read_features(dump(tmp_path / "x.pkl", data))
    assert message in str(caught.value)


def test_beside_regression_labels_classes_may_be_anything(tmp_path: Path) -> None:
    data = make_synthetic(samples=(9, 4, 4))
    assert read_features(dump(tmp_path / "y.pkl", data)).splits["train"].classes is not None
    data["train"]["classification_labels"] = np.array(["?"] * 9)
    split = read_features(dump(tmp_path / "x.pkl", data)).splits["train"]
    assert split.classes is None
    assert split.labels is not None
    assert len(split) == 9
    convert(tmp_path / "x.pkl", tmp_path / "x.safetensors")
    assert read_features(tmp_path / "x.safetensors").splits["train"].classes is None


def test_names_that_contradict_the_numbers_are_no_names(tmp_path: Path) -> None:
    data = make_synthetic(layout="iemocap4", samples=(40, 12, 12))
    data["train"]["annotations"][0] = "angry" if data["train"]["classification_labels"][0] != 3 else "sad"
    assert read_features(dump(tmp_path / "x.pkl", data)).splits["train"].class_names == {}


def test_inspect_counts_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_synthetic(tmp_path / "x.pkl", layout="iemocap", samples=(80, 20, 20))
    labels = {name: read_features(path).splits[name].classes for name in ("train", "valid", "test")}
    document = inspect_file(path, probing=False)
    assert document["refusal"] is None
    histogram = document["histogram"]
    assert histogram["key"] == "classification_labels"
    assert histogram["classes"] == [0, 1, 2, 3, 4, 5]
    for name, found in labels.items():
        assert histogram["counts"][name] == np.bincount(found, minlength=6).tolist()
    assert histogram["names"] == {str(k): name for k, name in enumerate(LABEL_NAMES[6])}
    most = int(np.bincount(labels["train"]).argmax())
    share = f"{(labels['train'] == most).mean():.1%}"
    assert f"train: always {LABEL_NAMES[6][most]!r} would be right in {share} of the samples" in document["findings"]
    assert main(["data", "inspect", str(path), "--no-probe"]) == 0
    assert "5 frustrated" in capsys.readouterr().out


def test_inspect_names_a_class_that_a_split_lacks(tmp_path: Path) -> None:
    data = make_synthetic(layout="iemocap4", samples=(60, 12, 12))
    test = data["test"]
    keep = [i for i, label in enumerate(test["classification_labels"]) if label != 1]
    data["test"] = {key: value[keep] if isinstance(value, np.ndarray) else [value[i] for i in keep]
                    for key, value in test.items()}
    assert "test: has no sample of sad" in inspect_file(dump(tmp_path / "x.pkl", data), probing=False)["findings"]


@pytest.mark.parametrize("classes", [6, 4])
def test_synthetic_classes_are_there_and_can_be_learned(classes: int, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    layout = "iemocap" if classes == 6 else "iemocap4"
    first = write_synthetic(tmp_path / "a.pkl", layout=layout).read_bytes()
    assert write_synthetic(tmp_path / "b.pkl", layout=layout).read_bytes() == first
    splits = read_features(tmp_path / "a.pkl").splits
    assert [splits["train"].text.shape[1:], splits["train"].audio.shape[1:], splits["train"].vision.shape[1:]] == [
        (1, 1024), (1, 512), (1, 1024)]
    for split in splits.values():
        assert split.class_names == dict(enumerate(LABEL_NAMES[classes]))
        assert split.text_bert is None

    def flat(name: str, modalities: tuple[str, ...]) -> np.ndarray:
        return np.hstack([getattr(splits[name], modality)[:, 0] for modality in modalities])

    scores = {}
    for modalities in (("text",), ("text", "audio", "vision")):
        model = LogisticRegression(max_iter=500, C=0.01).fit(flat("train", modalities), splits["train"].classes)
        scores[len(modalities)] = model.score(flat("test", modalities), splits["test"].classes)
    majority = np.bincount(splits["test"].classes).max() / len(splits["test"])
    assert majority < 0.5 < scores[1] < scores[3]
