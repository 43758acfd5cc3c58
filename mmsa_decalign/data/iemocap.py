"""A raw IEMOCAP release as splits: the pickles of conversational-emotion code, brought into MMSA's layout.

Such a pickle is a tuple or list of dictionaries by dialogue, and two collections of dialogues. Two orders are known:

    9 parts (DialogueRNN, DialogueGCN, MMGCN): ids, speakers, labels, text, audio, vision, sentences, train, test;
    6 parts (GCNet, `IEMOCAP_features_raw_4way.pkl` and `_6way.pkl`): ids, labels, speakers, sentences, train, test,
      with the features in three folders beside it, one .npy for each utterance (see `_FOLDERS`).

A sample is an utterance, one step in each modality; its id is DIALOGUE$_$UTTERANCE. The release names no validation
split. Whole dialogues are taken from its training dialogues: those of their last session (the speakers of a session
are in no other one), or a seeded tenth where the names do not tell sessions. What may change here: further orders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .reading import read_file
from .schema import MODALITIES

LABEL_NAMES = {
    6: ("happy", "sad", "neutral", "angry", "excited", "frustrated"),
    4: ("happy", "sad", "neutral", "angry"),
}
VALID_SEED = 1111
_ORDERS = {
    9: ("ids", "speakers", "labels", "text", "audio", "vision", "sentences", "train", "test"),
    6: ("ids", "labels", "speakers", "sentences", "train", "test"),
}
_FOLDERS = {"text": "deberta-large-4-UTT", "audio": "wav2vec-large-c-UTT", "vision": "manet_UTT"}
_SESSION = re.compile(r"Ses(\d+)")
_MOST_FACES = 10_000  # files of one utterance


def is_raw(data: Any) -> bool:
    """Whether a pickle holds a raw release: a tuple or list of six or nine parts, the first a dictionary."""
    return isinstance(data, tuple | list) and len(data) in _ORDERS and isinstance(data[0], Mapping)


def read_latin1(path: Path) -> Any:
    """The raw release in a pickle of Python 2; None for any other file."""
    try:
        data = read_file(path, encoding="latin1")
    except InputError:
        return None
    return data if is_raw(data) else None


def splits_of(data: Sequence[Any], path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """{split: {key: rows}} of a raw release, and what was done, in lines. Raises InputError."""
    parts = dict(zip(_ORDERS[len(data)], data, strict=True))
    for name, part in parts.items():
        collection = name in ("train", "test")
        if not isinstance(part, (list, tuple, set, frozenset, np.ndarray) if collection else Mapping):
            raise InputError(f"{path}: part {list(parts).index(name) + 1} of {len(parts)} is a {type(part).__name__}; "
                             f"expected {name} as a {'list' if collection else 'dictionary'} of dialogues.\n"
                             f"Known orders: {'; '.join(', '.join(order) for order in _ORDERS.values())}.")
    train, test = (_dialogues(parts, name, path) for name in ("train", "test"))
    if both := sorted(set(train) & set(test)):
        raise InputError(f"{path}: dialogue {both[0]!r} is in train and in test, so that the test is no test.\n"
                         "Take it out of one of the two.")
    train, valid, how = _validation(train, path)
    rows = {vid: _rows(parts, vid, path) for vid in (*train, *valid, *test)}
    names = _names([label for one in rows.values() for label in one["labels"]], path)
    features, lines = _features(parts, rows, path)
    splits = {name: _split(vids, rows, features, names, path) for name, vids in
              (("train", train), ("valid", valid), ("test", test))}
    lines = [f"a raw release of {len(names)} classes ({', '.join(names)}): {len(train)} dialogues for training, "
             f"{len(valid)} for validation ({how}), {len(test)} for the test", *lines]
    return splits, lines


def _dialogues(parts: Mapping[str, Any], name: str, path: Path) -> list[str]:
    """Sorted, since a release may hold a set; without duplicates."""
    vids = sorted({str(vid) for vid in parts[name]})
    unknown = [vid for vid in vids if vid not in parts["ids"]]
    if unknown or not vids:
        what = f"dialogue {unknown[0]!r} of {name} has no utterances" if unknown else f"{name} has no dialogue"
        raise InputError(f"{path}: {what}; expected the dialogues of the first part.")
    return vids


def _validation(train: list[str], path: Path) -> tuple[list[str], list[str], str]:
    """Training dialogues left, those for validation, and by which rule."""
    sessions = [match[1] if (match := _SESSION.match(vid)) else "" for vid in train]
    last = max(sessions)
    if "" not in sessions and len(set(sessions)) > 1:
        valid = [vid for vid, session in zip(train, sessions, strict=True) if session == last]
        how = f"session {int(last)}"
    else:
        if len(train) < 2:
            raise InputError(f"{path}: train has one dialogue, so that none is left for validation.")
        chosen = np.random.default_rng(VALID_SEED).permutation(len(train))[: max(1, len(train) // 10)]
        valid, how = [train[i] for i in sorted(chosen)], f"a tenth drawn with seed {VALID_SEED}"
    return [vid for vid in train if vid not in set(valid)], valid, how


def _rows(parts: Mapping[str, Any], vid: str, path: Path) -> dict[str, list[Any]]:
    """What the release knows of each utterance of a dialogue; every part must have as many rows as the ids."""
    rows = {}
    for name in parts:
        if name in ("train", "test"):
            continue
        values = parts[name].get(vid)
        if not isinstance(values, list | tuple | np.ndarray) or len(values) != len(parts["ids"][vid]):
            count = "none" if values is None else str(len(values)) if hasattr(values, "__len__") else "no list"
            raise InputError(f"{path}: dialogue {vid!r} has {len(parts['ids'][vid])} utterances and {count} of {name}; "
                             "expected one for each.")
        rows[name] = list(values)
    rows["ids"] = [str(uid) for uid in rows["ids"]]
    for label in rows["labels"]:
        if isinstance(label, bool) or not isinstance(label, int | float | np.number) or not 0 <= label < 6:
            raise InputError(f"{path}: dialogue {vid!r} has the label {label!r}; expected a whole number from 0 to 5 "
                             f"({', '.join(LABEL_NAMES[6])}) or to 3 ({', '.join(LABEL_NAMES[4])}).")
    return rows


def _names(labels: Sequence[float], path: Path) -> tuple[str, ...]:
    found = sorted({float(label) for label in labels})
    if any(label != int(label) for label in found):
        raise InputError(f"{path}: labels are {found[:6]}; expected whole numbers.")
    return LABEL_NAMES[4 if found[-1] < 4 else 6]


def _features(
    parts: Mapping[str, Any], rows: Mapping[str, Mapping[str, list[Any]]], path: Path
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """{modality: {dialogue: (utterances, width)}}, and which folders they are from."""
    if "text" in parts:
        return {m: {vid: _matrix(one[m], f"{path}: dialogue {vid!r}, {m}") for vid, one in rows.items()}
                for m in MODALITIES}, []
    folders = {m: path.parent / "features" / name for m, name in _FOLDERS.items()}
    if lacking := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        raise InputError(f"{path}: holds labels and no features, which are looked for beside it: no folder "
                         f"{', '.join(lacking)}.\nUnpack the whole release, so that 'features' lies beside this file.")
    features: dict[str, dict[str, np.ndarray]] = {}
    lines = []
    for m, folder in folders.items():
        vectors = {vid: [_utterance(folder, uid, str(speaker)) for uid, speaker in
                         zip(one["ids"], one["speakers"], strict=True)] for vid, one in rows.items()}
        every = [vector for some in vectors.values() for vector in some]
        known = next((vector for vector in every if vector is not None), None)
        if known is None:
            raise InputError(f"{folder}: none of its files shows a speaker; expected UTTERANCE.npy, or folders "
                             "UTTERANCE with files that have F or M in their names.")
        features[m] = {vid: _matrix([np.zeros_like(known) if one is None else one for one in some],
                                    f"{folder}: dialogue {vid!r}") for vid, some in vectors.items()}
        gaps = sum(vector is None for vector in every)
        zeros = f"; zeros for {gaps} utterances that do not show their speaker" if gaps else ""
        lines.append(f"{m}: {folder}{zeros}")
    return features, lines


def _utterance(folder: Path, uid: str, speaker: str) -> np.ndarray | None:
    """(width,): the file of an utterance, or the mean over those files of its folder that show its speaker."""
    if not re.fullmatch(r"\w+", uid):
        raise InputError(f"{folder}: {uid!r} is no name of an utterance; expected letters, digits and _.")
    single = folder / f"{uid}.npy"
    if single.is_file():
        return _vector(single)
    if not (folder / uid).is_dir():
        raise InputError(f"{folder}: has neither {uid}.npy nor a folder {uid}.\nUnpack the whole release.")
    faces = [face for face in sorted((folder / uid).glob("*.npy")) if speaker in face.stem][:_MOST_FACES]
    return np.mean([_vector(face) for face in faces], axis=0) if faces else None


def _vector(file: Path) -> np.ndarray:
    """(width,) float32 of a .npy, the mean over its rows if it has several. Mapped, so that no header is believed."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError, TypeError) as error:
        raise InputError(f"{file}: is no array of numbers ({str(error).splitlines()[0][:80]}).\n"
                         "Unpack the release again.") from None
    array = np.asarray(array).squeeze() if isinstance(array, np.ndarray) else np.empty(0)
    if array.dtype.kind not in "fiu" or not array.size or array.ndim > 2:
        raise InputError(f"{file}: has shape {array.shape} and type {array.dtype}; expected one vector, or one for "
                         "each step.")
    return np.atleast_1d(array.mean(axis=0) if array.ndim == 2 else array).astype(np.float32)


def _matrix(vectors: list[Any], where: str) -> np.ndarray:
    """(rows, width) float32."""
    try:
        matrix = np.asarray([np.asarray(vector).reshape(-1) for vector in vectors])
        if matrix.dtype.kind not in "fiu":
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(f"{where}: features are not numbers, or of different widths; expected a vector for each "
                         "utterance.") from None
    return matrix.astype(np.float32)


def _split(
    vids: Sequence[str], rows: Mapping[str, Mapping[str, list[Any]]], features: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str], path: Path,
) -> dict[str, Any]:
    labels = np.array([int(label) for vid in vids for label in rows[vid]["labels"]], dtype=np.int64)
    split: dict[str, Any] = {
        "id": [f"{vid}$_${uid}" for vid in vids for uid in rows[vid]["ids"]],
        "raw_text": [str(text) for vid in vids for text in rows[vid]["sentences"]],
        "classification_labels": labels,
        "annotations": [names[label] for label in labels],
    }
    for m in MODALITIES:
        try:
            split[m] = np.concatenate([features[m][vid] for vid in vids])[:, None, :]
        except ValueError:
            raise InputError(f"{path}: {m} has another width in some dialogues than in others.") from None
    return split
