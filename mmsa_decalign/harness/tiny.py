"""What a conformance check trains on: a feature file that every sound model learns at once, and a text encoder.

Both are made on the spot from fixed seeds, in a few kilobytes: nothing here is like real data except its layout. What
may change here: sizes and signal, as long as a model that learns anything at all learns this.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.schema import MODALITIES, SPLITS
from ..data.synthetic import VOCABULARY, VOCABULARY_SIZE

STEPS = (12, 20, 16)  # text, audio, vision: at most so many, whatever the data set has
WIDTHS = (24, 12, 16)  # where a data set's settings name none
ENCODER_WIDTH = 32
_LEVELS = (-0.8, -0.4, 0.4, 0.8)  # labels over the limit: none is neutral
_PAD, _UNKNOWN, _CLS, _SEP = 0, 100, 101, 102


def write_tiny_file(
    path: Path, settings: Mapping[str, Any], samples: Sequence[int], *, limit: float, unimodal: bool,
    tokens: bool = True, classes: Sequence[str] = (),
) -> Path:
    """Write a feature file with the widths of a data set and few, short samples; returns ``path``.

    With label y, |y| <= limit, modality m shows x_t = (y / limit) w_m + 0.1 noise at every step before its length, the
    signs w_m being the same in all splits; words and token ids lean with y. All modalities of a sample have one length
    where ``settings["seq_lens"]`` are equal, as in aligned files. samples: rows of train, valid and test. unimodal:
    with the labels T, A and V, which are y too. tokens: with ``text_bert``. classes: these in place of the label, taken
    in turn; then the features show signs w_mk of their class k instead of y w_m.
    """
    steps = [min(own, most) for own, most in zip(settings.get("seq_lens") or STEPS, STEPS, strict=True)]
    if settings.get("seq_lens") and len(set(settings["seq_lens"])) == 1:
        steps = [min(steps)] * 3
    widths = settings.get("feature_dims") or WIDTHS
    rng = np.random.default_rng(0)
    signs = [rng.choice([-1.0, 1.0], width) for width in widths]
    patterns = [rng.choice([-1.0, 1.0], (len(classes), width)) for width in widths]
    data = {}
    for name, rows in zip(SPLITS, samples, strict=True):
        levels = rng.choice(_LEVELS, rows)
        levels[:2] = _LEVELS[0], _LEVELS[-1]  # both signs in every split
        labels = (levels * limit).astype(np.float32)
        text_lengths = _lengths(rng, rows, steps[0])
        split: dict[str, Any] = {
            "id": [f"tiny-{name}-{row}$_$0" for row in range(rows)],
            "regression_labels": labels,
            "classification_labels": np.sign(labels) + 1,
            "annotations": ["Negative" if label < 0 else "Positive" for label in labels],
        }
        numbers = np.arange(rows) % max(1, len(classes))
        if classes:
            del split["regression_labels"]
            split |= {"classification_labels": numbers, "annotations": [classes[number] for number in numbers]}
        for modality, most, direction, pattern in zip(MODALITIES, steps, signs, patterns, strict=True):
            shared = modality == "text" or len(set(steps)) == 1
            lengths = text_lengths if shared else _lengths(rng, rows, most)
            noise = 0.1 * rng.standard_normal((rows, most, len(direction)))
            x = (pattern[numbers][:, None, :] if classes else levels[:, None, None] * direction) + noise
            x[np.arange(most) >= lengths[:, None]] = 0
            split[modality] = x.astype(np.float32)
            if modality != "text":
                split[f"{modality}_lengths"] = lengths.tolist()
        split["raw_text"], ids = _sentences(rng, levels, np.maximum(text_lengths, 3), max(3, steps[0]))
        if tokens:
            split["text_bert"] = ids
        if unimodal:
            split |= {f"regression_labels_{letter}": labels.copy() for letter in "TAV"}
        data[name] = split
    path.write_bytes(pickle.dumps(data, protocol=4))
    return path


def write_tiny_encoder(folder: Path) -> Path:
    """Write a random BERT (one layer, width 32) with its tokenizer, as a pretrained one lies in a folder.

    Its vocabulary is that of the synthetic data set, and so are the token ids of ``write_tiny_file``.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = [f"[unused{number}]" for number in range(VOCABULARY_SIZE)]
    for word, number in {"[PAD]": _PAD, "[UNK]": _UNKNOWN, "[CLS]": _CLS, "[SEP]": _SEP, "[MASK]": 1,
                         **VOCABULARY}.items():
        words[number] = word
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    config = BertConfig(vocab_size=VOCABULARY_SIZE, hidden_size=ENCODER_WIDTH, num_hidden_layers=1,
                        num_attention_heads=4, intermediate_size=ENCODER_WIDTH, max_position_embeddings=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    model.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")  # the only file that some models of MMSA's head read
    return folder


def _lengths(rng: np.random.Generator, rows: int, most: int) -> np.ndarray:
    return rng.integers(min(most, max(3, most // 2)), most + 1, rows)


def _sentences(
    rng: np.random.Generator, levels: np.ndarray, lengths: np.ndarray, steps: int
) -> tuple[list[str], np.ndarray]:
    """Sentences of words that lean with the label, and their ids, attention mask and segments (N, 3, steps).

    A length counts the words, [CLS] and [SEP], as in published files.
    """
    names = list(VOCABULARY)  # eight words that are negative, eight neutral, eight positive
    ids = np.zeros((len(levels), 3, steps), dtype=np.int64)
    sentences = []
    for row, (level, length) in enumerate(zip(levels, lengths, strict=True)):
        charged = rng.random(length - 2) < abs(level)
        groups = np.where(charged, 1 + np.sign(level), 1).astype(int)
        words = [names[8 * group + int(rng.integers(8))] for group in groups]
        sentences.append(" ".join(words))
        ids[row, 0, :length] = [_CLS, *(VOCABULARY[word] for word in words), _SEP]
        ids[row, 1, :length] = 1
    return sentences, ids
