"""From a data set's name to MMSA's three data loaders: finding the feature file, batching it, filling in ``args``.

The loaders yield MMSA's sample dictionaries with the lengths of all modalities added. They differ from MMSA's own in
four ways: the order of the training split depends on the seed alone, valid and test keep the file's order, a last
batch of a single sample joins the batch before it (batch normalisation and ``squeeze`` fail on one), and the file was
checked when it was read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.published import FILES
from ..data.reading import read_features
from ..data.schema import MODALITIES, Features, Split
from ..data.synthetic import LAYOUTS, ensure_synthetic
from ..errors import InputError
from .catalogue import STANDS_FOR, mmsa_datasets
from .classification import with_labels
from .encoders import encoder_width
from .fits import check_fit
from .interrupts import leave_to_parent
from .missing import incomplete


def metrics_family(dataset: str) -> str:
    """The MMSA data set whose metrics are used for ``dataset``: MOSI's for one that MMSA does not know."""
    return STANDS_FOR.get(dataset, dataset if dataset in mmsa_datasets() else "mosi")


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
        if path.is_dir():
            raise InputError(f"feature file {path} is a folder; name the file inside it")
        if not path.is_file():
            raise InputError(f"feature file {path} does not exist; {_remedy(dataset)}")
        return path
    if dataset == "synthetic":
        return ensure_synthetic(data_root(root))
    places = [Path(config_root) / relative] if config_root else []
    places.append(data_root(root) / relative)
    for place in places:
        for path in (place, place.with_suffix(".safetensors")):  # the latter is what `mmsa data convert` made of it
            if path.is_file():
                return path
    looked = " and ".join(str(place) for place in places)
    raise InputError(f"no feature file for data set {dataset!r}: looked for {looked}\n{_remedy(dataset)}")


def load_features(path: Path, files: Mapping[str, str | Path | None]) -> Features:
    """Read and check a feature file, ``files`` (text, audio, vision) replacing one modality each."""
    return read_features(path, **{modality: files.get(modality) or None for modality in MODALITIES})


def make_splits(args: Mapping[str, Any], features: Features) -> dict[str, SplitDataset]:
    """The three splits as the settings in ``args`` want them; they hold for every seed.

    Raises InputError where the settings ask for something that the file does not have.
    """
    features = with_labels(args, features)
    check_fit(args, features)
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
            split, sampler=batches, batch_size=None, collate_fn=_as_is, num_workers=num_workers, generator=own,
            worker_init_fn=leave_to_parent,
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
            tokens = split.text_bert.copy()
            tokens[tokens[:, 1].sum(axis=1) == 0, 1, 0] = 1  # nothing to attend to, no length to pack: one step counts
            arrays["text"] = tokens.astype(np.float32)
            lengths["text"] = tokens[:, 1].sum(axis=1)
        self.masks: dict[str, torch.Tensor] = {}
        if args.get("data_missing"):
            self._hide(args, arrays, lengths, path)
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

    def _hide(
        self, args: Mapping[str, Any], arrays: Mapping[str, np.ndarray], lengths: dict[str, np.ndarray], path: Path
    ) -> None:
        """MMSA's incomplete data. In an aligned file the other modalities are as long as the tokens."""
        if not args.get("use_bert"):
            raise InputError(f"{path}: model {args['model_name']!r} hides token ids, so that it needs use_bert=true")
        for modality in ("audio", "vision"):
            if args.get("need_data_aligned"):
                lengths[modality] = np.minimum(lengths["text"], arrays[modality].shape[1])
        steps = {modality: arrays[modality].shape[1] for modality in ("audio", "vision")}
        masks = incomplete(arrays["text"], steps, lengths, args["missing_rate"], args["missing_seed"])
        self.masks = {name: torch.from_numpy(mask) for name, mask in masks.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | list[int]) -> dict[str, Any]:
        chosen: Any = torch.as_tensor(index) if isinstance(index, list) else index
        sample: dict[str, Any] = {"index": chosen}
        for key, texts in (("raw_text", self.raw_text), ("id", self.ids)):
            sample[key] = [texts[i] for i in index] if isinstance(index, list) else texts[index]
        sample.update({name: tensor[chosen] for name, tensor in self.tensors.items()})
        sample.update({f"{name}_lengths": value[chosen] for name, value in self.lengths.items()})
        sample.update({name: mask[chosen] for name, mask in self.masks.items()})
        for modality in ("audio", "vision"):
            if f"{modality}_missing_mask" in sample:  # made here, since it is as large as the data itself
                sample[f"{modality}_m"] = sample[modality] * sample[f"{modality}_missing_mask"].unsqueeze(-1)
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


def _as_is(batch: Any) -> Any:
    return batch


def _remedy(dataset: str) -> str:
    if dataset.startswith("iemocap") and dataset in LAYOUTS:
        return ("give one with --feature-file PATH, make one of a raw release with mmsa data convert, or write a "
                f"stand-in: mmsa data synth {dataset}.pkl --layout {dataset}")
    layout = metrics_family(dataset)
    fetch = f"get it with mmsa data fetch {dataset}, " if any(file.dataset == dataset for file in FILES) else ""
    return (f"give one with --feature-file PATH, {fetch}or write a stand-in: "
            f"mmsa data synth {layout}.pkl --layout {layout}")
