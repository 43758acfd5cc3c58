"""The embedded data: made from a seed, in MMSA's feature-file layout, with a structure that is known exactly.

Per sample there are `latent_common` c (two numbers that shape all modalities) and, for each modality m,
`latent_unique_m` u_m (two numbers that shape m alone), all independent, uniform, mean 0, variance 1. With v = UNIQUE:

    own_m = 0.6 c_0 + 0.4 c_1 + v_m u_m0                            what modality m says by itself (labels T, A, V)
    s     = 0.6 c_0 + 0.4 c_1 + sum_m v_m u_m0 + PRODUCT c_1 (u_audio1 + u_vision1)            `latent_label`
    label = s + NOISE e, e ~ N(0, 1), clipped to [-3, 3], rounded to multiples of 0.2

(layout sims: everything divided by 3). With z = (c, u_m), modality m shows at the steps t < l of its length l

    x_t = offset + sum_k g_tk z_k w_k + STEP_NOISE noise,    g_tk = 1 + 0.9 cos(2 pi f_k t / l + phase_k)

and zeros after. g has mean 1 over the valid steps, so their average recovers z; averaging over the padding too gives
z l / T instead. Words and token ids lean with own_text. No modality alone can reach what all three reach.

Layouts iemocap and iemocap4: six or four classes in place of the label, one step a modality. With
p = (c_0 + 0.5 sum_m u_m0, c_1 + 0.5 sum_m u_m1) the class is the sector in which p lies; the sectors are as wide as the
classes are frequent in IEMOCAP. Features are x = offset + sum_k z_k w_k + STEP_NOISE noise; nothing else is noisy.

What can be reached, on the test split of the default seed (300 samples; last column: mean and standard deviation of
Non0_acc_2 over the seeds 0 to 5). "Linear" is ridge regression (penalty 10), "MLP" two hidden layers of 32 units, both
on standardised averages over the valid steps and trained on the 600 training samples; the label noise caps the ideal:

                                  MAE     Corr    Non0_acc_2   Has0_acc_2   six seeds
    ideal (latent_label)          0.236   0.975   0.957        0.920        0.948 +- 0.018
    MLP, all three                0.371   0.937   0.932        0.900        0.918 +- 0.015
    MLP, padding averaged in      0.436   0.904   0.907        0.877        0.884 +- 0.017
    linear, all three             0.503   0.870   0.854        0.830        0.849 +- 0.019
    linear, padding averaged in   0.573   0.829   0.829        0.807        0.830 +- 0.014
    linear, text                  0.797   0.648   0.783        0.770        0.749 +- 0.020
    linear, audio                 0.894   0.556   0.683        0.677        0.717 +- 0.022
    linear, vision                0.876   0.593   0.726        0.713        0.718 +- 0.031
    mean and majority             1.063   -       0.530        0.560        0.525 +- 0.008

Has0_acc_2 of the ideal is lower because a label rounded to 0 counts as positive.

What may change here: the numbers below, and VERSION with them: files of another version are then made anew.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, nearest
from .iemocap import LABEL_NAMES
from .schema import MODALITIES, SPLITS
from .whole import appearing

VERSION = 1
SEED = 1
UNIQUE = {"text": 0.65, "audio": 0.5, "vision": 0.5}
PRODUCT = 0.4
NOISE = 0.3
STEP_NOISE = 1.0
_MARK = "mmsa-decalign synthetic features, version "
_CLIPS_PER_VIDEO = 10

_WORDS = {
    -1: ["awful", "bad", "boring", "dull", "poor", "sad", "slow", "weak"],
    0: ["actor", "film", "movie", "part", "scene", "story", "the", "this"],
    1: ["brilliant", "enjoyed", "fine", "fun", "good", "great", "loved", "sharp"],
}
_CLS, _SEP = 101, 102  # as in bert-base-uncased, where 100 is [UNK]; the words follow
VOCABULARY = {word: 103 + i for i, word in enumerate(w for words in _WORDS.values() for w in words)}
VOCABULARY_SIZE = 128


@dataclass(frozen=True)
class _Layout:
    steps: tuple[int, int, int]  # text, audio, vision
    widths: tuple[int, int, int]
    samples: tuple[int, int, int] = (60, 20, 30)  # train, valid, test
    aligned: bool = False  # one length for all modalities, and no keys audio_lengths and vision_lengths
    unimodal: bool = False
    limit: float = 3.0  # labels in [-limit, limit]
    classes: int = 0  # classes in place of labels, if not 0


_LAYOUTS = {
    "synthetic": _Layout((12, 20, 16), (24, 12, 16), samples=(600, 200, 300), unimodal=True),
    "mosi": _Layout((50, 50, 50), (768, 5, 20), aligned=True),
    "mosi_unaligned": _Layout((50, 375, 500), (768, 5, 20)),
    "mosei": _Layout((50, 50, 50), (768, 74, 35), aligned=True),
    "mosei_unaligned": _Layout((50, 500, 375), (768, 74, 35)),
    "sims": _Layout((39, 400, 55), (768, 33, 709), unimodal=True, limit=1.0),
    "iemocap": _Layout((1, 1, 1), (1024, 512, 1024), samples=(400, 100, 150), classes=6),
    "iemocap4": _Layout((1, 1, 1), (1024, 512, 1024), samples=(400, 100, 150), classes=4),
}
LAYOUTS = tuple(_LAYOUTS)
# Shares of the classes in the releases of conversational-emotion code, in the order of LABEL_NAMES
_SHARES = {6: (0.09, 0.15, 0.23, 0.15, 0.14, 0.24), 4: (0.3, 0.2, 0.3, 0.2)}


def make_synthetic(
    *, seed: int = SEED, layout: str = "synthetic", samples: tuple[int, int, int] | None = None
) -> dict[str, Any]:
    """A data set with the structure above, as the dictionary that MMSA unpickles: {split: {key: rows}}.

    `layout` gives the steps and widths of a published data set (one of LAYOUTS), `samples` the rows of train, valid
    and test (defaults: 600, 200, 300; in the other layouts 60, 20, 30, in those of IEMOCAP 400, 100, 150). No video is
    in two splits. Beside MMSA's keys each split has the true factors `latent_*` (N, 2) and, in layouts with a label,
    the noise-free one `latent_label` (N,); the key `generator` beside the splits says version, seed, layout and
    samples. Raises InputError for an unknown layout, a negative seed or a count below 1.
    """
    if layout not in _LAYOUTS:
        raise InputError(f"unknown layout {layout!r} of synthetic data; {nearest(layout, LAYOUTS)}")
    shape = _LAYOUTS[layout]
    samples = tuple(samples or shape.samples)
    if len(samples) != len(SPLITS) or min(samples) < 1:
        raise InputError(f"samples {samples}: expected three counts (train, valid, test) of at least 1")
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    rng = np.random.default_rng([seed, len(SPLITS)])
    maps = {m: _feature_map(rng, width) for m, width in zip(MODALITIES, shape.widths, strict=True)}
    generator = {"name": f"{_MARK}{VERSION}", "version": VERSION, "seed": seed, "layout": layout, "samples": samples}
    data: dict[str, Any] = {"generator": generator}  # first, so that it is found at the head of the file
    for i, (name, rows) in enumerate(zip(SPLITS, samples, strict=True)):
        make = _class_split if shape.classes else _split
        data[name] = make(np.random.default_rng([seed, i]), name, rows, shape, maps)
    return data


def write_synthetic(
    path: str | os.PathLike[str],
    *,
    seed: int = SEED,
    layout: str = "synthetic",
    samples: tuple[int, int, int] | None = None,
) -> Path:
    """Write `make_synthetic(...)` to `path` and return it: the same seed gives the same bytes.

    The file appears whole or not at all, missing folders are made, and a file that was not made here is never
    overwritten. Raises InputError.
    """
    path = Path(path).expanduser()
    _made_by_version(path)
    data = make_synthetic(seed=seed, layout=layout, samples=samples)
    with appearing(path) as unfinished, unfinished.open("xb") as file:
        pickle.dump(data, file, protocol=4)
    return path


def ensure_synthetic(data_root: str | os.PathLike[str]) -> Path:
    """The default data set below `data_root`, made now if it is absent or of another VERSION.

    Returns <data_root>/SYNTHETIC/Processed/synthetic.pkl. Raises InputError if a file that was not made here is there.
    """
    path = Path(data_root).expanduser() / "SYNTHETIC" / "Processed" / "synthetic.pkl"
    return path if _made_by_version(path) == VERSION else write_synthetic(path)


def ideal_metrics(data: Mapping[str, Any], split: str = "test") -> dict[str, float]:
    """MAE, Corr, Non0_acc_2 and Has0_acc_2 (as MMSA defines them) of predicting the noise-free label.

    `data` is what `make_synthetic` returns. No model does better on average; the rest is label noise and rounding.
    Raises InputError for data that was not made here.
    """
    rows = data.get(split, {})
    if "latent_label" not in rows:
        raise InputError(f"split {split!r} has no 'latent_label': an ideal is known for synthetic data only")
    best, truth = rows["latent_label"].astype(np.float64), rows["regression_labels"].astype(np.float64)
    rated = truth != 0
    return {
        "MAE": float(np.abs(best - truth).mean()),
        "Corr": float(np.corrcoef(best, truth)[0, 1]),
        "Non0_acc_2": float(((best > 0) == (truth > 0))[rated].mean()),
        "Has0_acc_2": float(((best >= 0) == (truth >= 0)).mean()),
    }


def _made_by_version(path: Path) -> int | None:
    """VERSION that wrote the file, None without a file. Raises InputError for a file of other origin."""
    try:
        with path.open("rb") as file:
            made = re.search(rf"{_MARK}(\d+)".encode(), file.read(1024))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be used for synthetic data ({error.strerror}).\nGive another path.") from None
    if made is None:
        raise InputError(f"{path}: was not made by this program, so it is not overwritten with synthetic data.\n"
                         "Move the file away, or give another path.")
    return int(made[1])


def _feature_map(rng: np.random.Generator, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (4, width) with orthogonal rows, each entry of size about 0.5, and an offset (width,)."""
    rows = np.linalg.qr(rng.standard_normal((width, 4)))[0].T
    return 0.5 * np.sqrt(width) * rows, 0.7 * rng.standard_normal(width)


def _split(
    rng: np.random.Generator, name: str, n: int, shape: _Layout, maps: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    common = _factors(rng, n)
    unique = {m: _factors(rng, n) for m in MODALITIES}
    shared_part = 0.6 * common[:, 0] + 0.4 * common[:, 1]
    own = {m: shared_part + UNIQUE[m] * unique[m][:, 0] for m in MODALITIES}
    product = PRODUCT * common[:, 1] * (unique["audio"][:, 1] + unique["vision"][:, 1])
    exact = shared_part + sum(UNIQUE[m] * unique[m][:, 0] for m in MODALITIES) + product
    labels = _on_scale(exact + NOISE * rng.standard_normal(n), shape.limit)

    one_length = _lengths(rng, n, shape.steps[0])
    lengths = {m: one_length if shape.aligned else _lengths(rng, n, steps)
               for m, steps in zip(MODALITIES, shape.steps, strict=True)}
    words, text_bert = _words(rng, own["text"], lengths["text"], shape.steps[0])
    rows: dict[str, Any] = {
        "raw_text": words,
        "id": [f"synthetic-{name}-{i // _CLIPS_PER_VIDEO}$_${i % _CLIPS_PER_VIDEO}" for i in range(n)],
        "text_bert": text_bert,
    }
    for m, steps in zip(MODALITIES, shape.steps, strict=True):
        rows[m] = _sequences(rng, np.hstack([common, unique[m]]), lengths[m], steps, *maps[m])
    if not shape.aligned:
        rows |= {f"{m}_lengths": lengths[m].tolist() for m in ("audio", "vision")}
    rows["annotations"] = [("Negative", "Neutral", "Positive")[int(np.sign(label)) + 1] for label in labels]
    rows["classification_labels"] = (np.sign(labels) + 1).astype(np.float32)
    rows["regression_labels"] = labels
    if shape.unimodal:
        rows |= {f"regression_labels_{m[0].upper()}": _on_scale(own[m], shape.limit) for m in MODALITIES}
    rows["latent_common"] = common.astype(np.float32)
    rows |= {f"latent_unique_{m}": unique[m].astype(np.float32) for m in MODALITIES}
    rows["latent_label"] = (np.clip(exact, -3, 3) * shape.limit / 3).astype(np.float32)
    return rows


def _class_split(
    rng: np.random.Generator, name: str, n: int, shape: _Layout, maps: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """As a converted IEMOCAP release has it: classes and their names, no token ids, no lengths."""
    common = _factors(rng, n)
    unique = {m: _factors(rng, n) for m in MODALITIES}
    x, y = (common + 0.5 * sum(unique.values())).T
    turn = (np.arctan2(y, x) / (2 * np.pi)) % 1
    labels = np.searchsorted(np.cumsum(_SHARES[shape.classes])[:-1], turn, side="right")
    rows: dict[str, Any] = {
        "raw_text": [f"sentence {i}" for i in range(n)],
        "id": [f"synthetic-{name}-{i // _CLIPS_PER_VIDEO}$_${i % _CLIPS_PER_VIDEO}" for i in range(n)],
        "classification_labels": labels.astype(np.int64),
        "annotations": [LABEL_NAMES[shape.classes][label] for label in labels],
    }
    for m in MODALITIES:
        weights, offset = maps[m]
        clean = np.hstack([common, unique[m]]) @ weights + offset
        rows[m] = (clean + STEP_NOISE * rng.standard_normal(clean.shape)).astype(np.float32)[:, None, :]
    rows["latent_common"] = common.astype(np.float32)
    rows |= {f"latent_unique_{m}": unique[m].astype(np.float32) for m in MODALITIES}
    return rows


def _factors(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(-np.sqrt(3), np.sqrt(3), (n, 2))


def _on_scale(values: np.ndarray, limit: float) -> np.ndarray:
    """Clip to [-3, 3], bring to [-limit, limit], round to multiples of 0.2."""
    return (np.round(np.clip(values, -3, 3) * (limit / 3 * 5)) / 5 + 0.0).astype(np.float32)  # + 0.0: no -0


def _lengths(rng: np.random.Generator, n: int, steps: int) -> np.ndarray:
    return rng.integers(max(3, steps // 4), steps + 1, n)


def _sequences(
    rng: np.random.Generator, z: np.ndarray, lengths: np.ndarray, steps: int, weights: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """(N, steps, width) float32: x_t of the module docstring, zero from each sample's length on."""
    t = np.arange(steps)[None, :, None]
    frequency = np.array([1, 2, 1, 2])
    phase = rng.uniform(0, 2 * np.pi, (len(z), 1, 4))
    gain = 1 + 0.9 * np.cos(2 * np.pi * frequency * t / lengths[:, None, None] + phase)  # (N, steps, 4)
    x = rng.standard_normal((len(z), steps, len(offset)), dtype=np.float32)
    x *= STEP_NOISE
    x += (gain * z[:, None, :]).astype(np.float32) @ weights.astype(np.float32)
    x += offset.astype(np.float32)
    x[np.arange(steps) >= lengths[:, None]] = 0
    return x


def _words(rng: np.random.Generator, own: np.ndarray, lengths: np.ndarray, steps: int) -> tuple[list[str], np.ndarray]:
    """Sentences and their tokens (N, 3, steps): ids, attention mask, segments; length = words + [CLS] + [SEP].

    A word is neutral with probability 1/2, otherwise positive with probability 1 / (1 + exp(-2 own)).
    """
    tokens = np.zeros((len(own), 3, steps), dtype=np.int64)
    sentences = []
    for i, length in enumerate(lengths):
        charged = rng.random(length - 2) < 0.5
        positive = rng.random(length - 2) < 1 / (1 + np.exp(-2 * own[i]))
        choice = rng.integers(0, 8, length - 2)
        signs = np.where(charged, np.where(positive, 1, -1), 0)
        words = [_WORDS[int(sign)][int(k)] for sign, k in zip(signs, choice, strict=True)]
        sentences.append(" ".join(words))
        tokens[i, 0, :length] = [_CLS, *(VOCABULARY[word] for word in words), _SEP]
        tokens[i, 1, :length] = 1
    return sentences, tokens
