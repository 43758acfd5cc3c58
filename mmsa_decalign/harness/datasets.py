"""From a data set's name to MMSA's three data loaders: finding the feature file, batching it, filling in ``args``.

The loaders yield MMSA's sample dictionaries with the lengths of all modalities added. They differ from MMSA's own in
four ways: the order of the training split depends on the seed alone, valid and test keep the file's order, a last
batch of a single sample joins the batch before it (batch normalisation and ``squeeze`` fail on one), and the file was
checked when it was read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.reading import read_features
from ..data.schema import Features, Split
from ..data.synthetic import ensure_synthetic
from ..errors import InputError
from .config import STANDS_FOR

MODALITIES = ("text", "audio", "vision")
BERT_WIDTH = 768  # what MMSA writes into args for every text encoder


def metrics_family(dataset: str) -> str:
    """The MMSA data set whose metrics are used for ``dataset``: MOSI's for one that MMSA does not know."""
    return STANDS_FOR.get(dataset, dataset if dataset in ("mosi", "mosei", "sims") else "mosi")


def data_root(given: str | Path | None = None) -> Path:
    """The folder that feature files are looked for in: ``given``, else $MMSA_DATA_ROOT, else ~/MMSA/data."""
    return Path(given or os.environ.get("MMSA_DATA_ROOT") or Path.home() / "MMSA" / "data").expanduser()


def locate(
    dataset: str,
    relative: str,
    *,
    feature_file: str | Path | None = None,
    root: str | Path | None = None,
    config_root: str | None = None,
) -> Path:
    """The feature file to read; the synthetic one is made on first use. Raises InputError saying where it looked."""
    if feature_file:
        path = Path(feature_file).expanduser()
        if not path.is_file():
            raise InputError(f"feature file {path} does not exist; {_remedy(dataset)}")
        return path
    if dataset == "synthetic":
        return ensure_synthetic(data_root(root))
    places = [Path(config_root) / relative] if config_root else []
    places.append(data_root(root) / relative)
    for path in places:
        if path.is_file():
            return path
    looked = " and ".join(str(path) for path in places)
    raise InputError(f"no feature file for data set {dataset!r}: looked for {looked}\n{_remedy(dataset)}")


def load_features(path: Path, files: Mapping[str, str | Path | None]) -> Features:
    """Read and check a feature file, ``files`` (text, audio, vision) replacing one modality each."""
    return read_features(path, **{modality: files.get(modality) or None for modality in MODALITIES})


def make_splits(args: Mapping[str, Any], features: Features) -> dict[str, SplitDataset]:
    """The three splits as the settings in ``args`` want them; they hold for every seed.

    Raises InputError where the settings ask for something that the file does not have.
    """
    if args.get("data_missing"):
        raise InputError(f"model {args['model_name']!r} trains on incomplete data, which is not supported yet")
    return {name: SplitDataset(features.splits[name], args, features.path) for name in ("train", "valid", "test")}


def make_loaders(
    args: MutableMapping[str, Any], splits: Mapping[str, SplitDataset], *, seed: int, num_workers: int = 0
) -> dict[str, DataLoader]:
    """MMSA's loaders by split; writes ``feature_dims``, ``seq_lens`` and ``train_samples`` into args, as MMSA does."""
    args["feature_dims"] = list(splits["train"].feature_dims)
    if args.get("use_bert"):
        args["feature_dims"][0] = encoder_width(args.get("pretrained"))
    args["seq_lens"] = splits["train"].seq_lens
    args["train_samples"] = len(splits["train"])
    loaders = {}
    for name, split in splits.items():
        batches = BatchSampler(len(split), args["batch_size"], seed=seed if name == "train" else None)
        # A generator of its own keeps the loader from drawing on torch's global one, which belongs to the model.
        own = torch.Generator().manual_seed(seed)
        loaders[name] = DataLoader(
            split, sampler=batches, batch_size=None, collate_fn=_as_is, num_workers=num_workers, generator=own
        )
    return loaders


class SplitDataset(Dataset):
    """One split as MMSA's samples. Indexed by a list it returns the batch, cut from the arrays in one step."""

    def __init__(self, split: Split, args: Mapping[str, Any], path: Path) -> None:
        arrays: dict[str, np.ndarray] = {modality: getattr(split, modality) for modality in MODALITIES}
        lengths = dict(split.lengths)
        if args.get("use_bert"):
            if split.text_bert is None:
                raise InputError(f"{path}, split {split.name!r}: model {args['model_name']!r} needs token ids, key "
                                 "'text_bert', which this file lacks; set use_bert=false or give another file")
            arrays["text"] = split.text_bert.astype(np.float32)
            lengths["text"] = split.text_bert[:, 1].sum(axis=1)
        if args.get("need_normalized"):  # MMSA's word for averages over all steps, padded ones included
            for modality in ("audio", "vision"):
                arrays[modality] = arrays[modality].mean(axis=1, keepdims=True)
                lengths[modality] = np.ones(len(split.labels), dtype=np.int64)
        self.tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self.lengths = {name: torch.from_numpy(np.asarray(value, dtype=np.int64)) for name, value in lengths.items()}
        labels = {"M": split.labels, **split.unimodal_labels}
        self.labels = {name: torch.from_numpy(np.asarray(value)).view(-1, 1) for name, value in labels.items()}
        self.ids, self.raw_text = split.ids, split.raw_text
        text_steps = self.tensors["text"].shape[2 if args.get("use_bert") else 1]
        self.seq_lens = (text_steps, self.tensors["audio"].shape[1], self.tensors["vision"].shape[1])
        self.feature_dims = tuple(self.tensors[modality].shape[2] for modality in MODALITIES)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | list[int]) -> dict[str, Any]:
        chosen: Any = torch.as_tensor(index) if isinstance(index, list) else index
        sample: dict[str, Any] = {"index": chosen}
        for key, texts in (("raw_text", self.raw_text), ("id", self.ids)):
            sample[key] = [texts[i] for i in index] if isinstance(index, list) else texts[index]
        sample.update({name: tensor[chosen] for name, tensor in self.tensors.items()})
        sample.update({f"{name}_lengths": value[chosen] for name, value in self.lengths.items()})
        sample["labels"] = {name: value[chosen] for name, value in self.labels.items()}
        return sample


class BatchSampler(Sampler[list[int]]):
    """Index lists of ``batch_size``, in a new order each pass if there is a seed; never a last batch of one sample."""

    def __init__(self, n_samples: int, batch_size: int, *, seed: int | None = None) -> None:
        self.n_samples, self.batch_size = n_samples, batch_size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    @property
    def folds(self) -> bool:
        """Whether the last batch would hold one sample and therefore joins the one before."""
        return self.n_samples > self.batch_size > 1 and self.n_samples % self.batch_size == 1

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size) - self.folds

    def __iter__(self) -> Iterator[list[int]]:
        if self.generator is None:
            order = list(range(self.n_samples))
        else:
            order = torch.randperm(self.n_samples, generator=self.generator).tolist()
        for number in range(len(self)):
            start = number * self.batch_size
            yield order[start:] if number == len(self) - 1 else order[start:start + self.batch_size]


def encoder_width(pretrained: str | None) -> int:
    """The hidden size of a text encoder in a local folder; MMSA's 768 where it is only known by name."""
    config = Path(pretrained or "").expanduser() / "config.json"
    if pretrained and config.is_file():
        return int(json.loads(config.read_text(encoding="utf-8")).get("hidden_size", BERT_WIDTH))
    return BERT_WIDTH


def check_encoder(pretrained: str) -> None:
    """Refuse a text encoder folder without configuration or weights; a hub name is taken as it is."""
    path = Path(pretrained).expanduser()
    looks_like_path = pretrained.startswith((".", "~", os.sep)) or path.exists()
    if not looks_like_path:
        return
    if not path.is_dir():
        raise InputError(f"--pretrained {pretrained}: expected a folder with a text encoder, or its name on the hub")
    if not (path / "config.json").is_file():
        raise InputError(f"--pretrained {pretrained}: the folder has no config.json")
    if not any((path / name).is_file() for name in _WEIGHTS):
        raise InputError(f"--pretrained {pretrained}: the folder has no weights; expected one of {', '.join(_WEIGHTS)}")
    try:
        is_bert = "type_vocab_size" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--pretrained {pretrained}: its config.json cannot be read ({error})") from error
    if not is_bert:
        raise InputError(f"--pretrained {pretrained}: its config.json is not that of a BERT architecture")


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def _as_is(batch: Any) -> Any:
    return batch


def _remedy(dataset: str) -> str:
    layout = metrics_family(dataset)
    return (f"give one with --feature-file PATH, or write a stand-in: "
            f"mmsa data synth {layout}.pkl --layout {layout}")
