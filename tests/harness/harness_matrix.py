"""Small stand-ins for the tests of MMSA's own models: feature files in three layouts, text encoders, small settings."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsa_decalign.data.synthetic import VOCABULARY, VOCABULARY_SIZE, make_synthetic

# 33 training samples: three batches of 12, 12 and 9.
SAMPLES = (33, 12, 17)
# Steps of text, audio and vision: 25 divides MMSA's 50, 500 and 375, and nothing divides those of SIMS (39, 400, 55).
STEPS = {"mosi": (25, 50, 75), "mosei": (25, 50, 75), "sims": (13, 27, 11)}


def write_features(
    folder: Path, dataset: str, *, aligned: bool = False, one_step: bool = False,
    samples: tuple[int, int, int] = SAMPLES,
) -> Path:
    """A synthetic file with the layout's keys and widths, cut to a few time steps, or to one (token ids excepted)."""
    layout = dataset if dataset == "sims" or aligned else f"{dataset}_unaligned"
    tokens = STEPS[dataset][0]
    steps = (1, 1, 1) if one_step else (tokens,) * 3 if aligned else STEPS[dataset]
    data = make_synthetic(layout=layout, samples=samples)
    for name in ("train", "valid", "test"):
        split = data[name]
        split["text_bert"] = np.ascontiguousarray(split["text_bert"][:, :, :tokens])
        for modality, length in zip(("text", "audio", "vision"), steps, strict=True):
            split[modality] = np.ascontiguousarray(split[modality][:, :length])
            if f"{modality}_lengths" in split:
                split[f"{modality}_lengths"] = [min(old, length) for old in split[f"{modality}_lengths"]]
    path = folder / f"{layout}{'_one_step' if one_step else ''}.pkl"
    path.write_bytes(pickle.dumps(data, protocol=4))
    return path


def write_encoder(folder: Path, kind: str = "bert", *, width: int = 32, vocabulary_size: int = VOCABULARY_SIZE) -> Path:
    """A random BERT or RoBERTa of one layer with the vocabulary of the synthetic data, saved like a pretrained one."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    sizes = {"vocab_size": vocabulary_size, "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 4,
             "intermediate_size": 32, "max_position_embeddings": 80}
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if kind == "bert":
        BertModel(BertConfig(**sizes)).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    else:
        RobertaModel(RobertaConfig(**sizes, type_vocab_size=1)).save_pretrained(folder)
        words = {word: number for number, word in enumerate(vocabulary())}
        (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def vocabulary() -> list[str]:
    """The words of the synthetic data under their own numbers, with BERT's special tokens where BERT has them."""
    words = [f"[unused{number}]" for number in range(VOCABULARY_SIZE)]
    for number, word in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 127: "[MASK]"}.items():
        words[number] = word
    for word, number in VOCABULARY.items():
        words[number] = word
    return words


# What makes a model of MMSA small; names that a model does not have are left out by `small_settings`.
_SMALL: dict[str, dict[str, Any]] = {
    "tfn": {"hidden_dims": [8, 4, 8], "text_out": 8, "post_fusion_dim": 8},
    "lmf": {"hidden_dims": [8, 4, 8]},
    "lf_dnn": {"hidden_dims": [8, 4, 8], "text_out": 8},
    "mtfn": {"hidden_dims": [8, 4, 8], "text_out": 8},
    "mlmf": {"hidden_dims": [8, 4, 8]},
    "mlf_dnn": {"hidden_dims": [8, 4, 8]},
    "mfn": {"hidden_dims": [16, 8, 16], "memsize": 8},
    "mfm": {"hidden_dims": [16, 8, 16], "memsize": 8},
    "graph_mfn": {"hidden_dims": [16, 8, 16], "memsize": 8, "inner_node_dim": 8},
    "ef_lstm": {"hidden_dims": 8},
    "mult": {"nlevels": 1, "dst_feature_dim_nheads": [8, 2]},
    "misa": {"hidden_size": 16},
    "tfr_net": {"nlevels": 1, "dst_feature_dim_nheads": [8, 2]},
}


def small_settings(model: str) -> dict[str, Any]:
    """Settings for one quick epoch: small layers, three batches, an optimiser that steps after every batch."""
    return {"batch_size": 12, "max_epochs": 1, **_SMALL.get(model, {})}
