"""Whole modalities that a sample lacks: which ones at a missing rate, and what a model gets to see then.

Not to be taken for tfr_net's incomplete data (missing.py), where steps of a modality are hidden and the model knows the
complete ones. Here nothing of the modality reaches the model. One that handles absence (a plugin that says so) is told
by "text_present" and so on in the batch; any other sees zeros.

Modality m of a sample is absent where u < rate, u being a number in [0, 1) made of the seed, the sample's id and the
modality's name by a hash. So neither the order, size and number of batches nor other samples play a part, and what is
absent at a rate is absent at every higher one. A sample that would lose all modalities keeps the one with the largest u
among those with a rate below 1; with one rate for all of them that keeps the order of the rates too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Dataset

from ..data.schema import MODALITIES
from ..errors import InputError, nearest

MASKED = "masked: the model is told which modalities a sample has"
ZEROS = "set to zeros: the model cannot be told which modalities a sample has"

Rates = Mapping[str, float]  # modality -> missing rate in [0, 1]


@dataclass(frozen=True)
class Absence:
    """Missing rates of a run: of the test split, and of what training sees, the training and the validation split."""

    test: dict[str, float] = field(default_factory=dict)
    training: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.test or self.training)

    def of_split(self, name: str) -> dict[str, float]:
        """The rates of a split by its name."""
        return self.test if name == "test" else self.training

    def label(self) -> str:
        """For a table: "missing vision=1 at test, audio=0.3 in training"."""
        parts = [f"{in_words(rates)} {where}" for rates, where in
                 ((self.test, "at test"), (self.training, "in training")) if rates]
        return f"missing {', '.join(parts)}"


def parse_rates(text: str, option: str = "--missing") -> dict[str, float]:
    """ "text=0.2,vision=1.0" as rates by modality, without those that are 0. Raises InputError."""
    rates: dict[str, float] = {}
    for part in text.split(","):
        name, separator, value = (word.strip() for word in part.partition("="))
        if not separator or not name:
            raise InputError(f"{option} {text!r}: expected MODALITY=RATE, for example vision=1.0,audio=0.3")
        if name not in MODALITIES:
            raise InputError(f"{option} {text!r}: unknown modality {name!r}; {nearest(name, MODALITIES)}")
        if name in rates:
            raise InputError(f"{option} {text!r}: {name} is named twice")
        rates[name] = parse_rate(value, f"{option} {text!r}: {name}={value}")
    return {m: rates[m] for m in MODALITIES if rates.get(m)}


def parse_rate(text: str, what: str) -> float:
    """A missing rate in [0, 1]; raises InputError that begins with ``what``."""
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:  # nor NaN
        raise InputError(f"{what}: expected a rate from 0 (never missing) to 1 (always missing)")
    return rate


def in_words(rates: Rates) -> str:
    """ "text=0.2,vision=1", as on the command line."""
    return ",".join(f"{name}={rate:g}" for name, rate in rates.items())


def in_use(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The modalities that a model with these settings looks at."""
    chosen = settings.get("modalities", MODALITIES)
    return tuple(m for m in MODALITIES if m in chosen)


def check_rates(rates: Rates, settings: Mapping[str, Any], option: str = "--missing") -> None:
    """Refuse rates that make no sense for a model with these settings. Raises InputError."""
    if rates and settings.get("data_missing"):
        raise InputError(f"{option}: model {settings['model_name']!r} hides parts of its input by itself; use "
                         "--set missing_rate=[TEXT,AUDIO,VISION] instead")
    names = in_use(settings)
    for name in rates:
        if name not in names:
            raise InputError(f"{option} {in_words(rates)}: setting modalities leaves {name} out already; "
                             f"it has {', '.join(names)}")
    if all(rates.get(name) == 1 for name in names):
        raise InputError(f"{option} {in_words(rates)}: nothing is left to look at; give at least one of "
                         f"{', '.join(names)} a rate below 1")


def share(seed: int, sample: str, modality: str) -> float:
    """u of a sample's modality: uniform on [0, 1), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{sample}\0{modality}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def presence(ids: Iterable[str], rates: Rates, modalities: Sequence[str], seed: int) -> dict[str, torch.Tensor]:
    """(N,) bool for each of ``modalities``: whether the sample has it. Never False in all of them, see above."""
    rows = []
    for sample in ids:
        u = {m: share(seed, str(sample), m) for m in modalities}
        here = {m: u[m] >= rates.get(m, 0.0) for m in modalities}
        if not any(here.values()):
            here[max((m for m in modalities if rates[m] < 1), key=u.__getitem__)] = True
        rows.append([here[m] for m in modalities])
    table = torch.tensor(rows, dtype=torch.bool).view(-1, len(modalities))
    return dict(zip(modalities, table.unbind(dim=1), strict=True))


class AbsentSplit(Dataset):
    """A split seen at missing rates: an absent modality is zero, one step long, and "MODALITY_present" is False.

    Zeros and flag are there for every model; who reads the flag need not look at the zeros. Of token ids one step
    stays attended, as for a sample without any.
    """

    def __init__(self, split: Any, rates: Rates, settings: Mapping[str, Any], seed: int) -> None:
        self.split, self.tokens = split, bool(settings.get("use_bert"))
        self.present = presence(split.ids, rates, in_use(settings), seed)

    def __len__(self) -> int:
        return len(self.split)

    def __getattr__(self, name: str) -> Any:
        if name == "split":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.split, name)

    def __getitem__(self, index: int | list[int]) -> dict[str, Any]:
        sample = dict(self.split[index])
        for modality, mask in self.present.items():
            here = mask[sample["index"]]
            x = sample[modality]
            zeros = torch.zeros_like(x)
            if modality == "text" and self.tokens:
                zeros[..., 1, 0] = 1
            sample[modality] = torch.where(here.view(*here.shape, 1, 1), x, zeros)
            if (key := f"{modality}_lengths") in sample:
                sample[key] = torch.where(here, sample[key], torch.ones_like(sample[key]))
            sample[f"{modality}_present"] = here
        return sample

    def counts(self) -> dict[str, int]:
        """How many samples lack each modality."""
        return {modality: int((~mask).sum()) for modality, mask in self.present.items()}


def hide(splits: Mapping[str, Any], absence: Absence, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The splits as a run with this seed sees them; those without a rate are returned as they are."""
    return {
        name: AbsentSplit(split, absence.of_split(name), settings, seed) if absence.of_split(name) else split
        for name, split in splits.items()
    }


def describe(absence: Absence, splits: Mapping[str, Any], seed: int, *, told: bool) -> dict[str, Any] | None:
    """For the record: the rates, how many samples lack what, and how absence was done; None where nothing is absent."""
    if not absence:
        return None
    absent = {name: split.counts() for name, split in splits.items() if isinstance(split, AbsentSplit)}
    return {"test": absence.test, "training": absence.training, "seed": seed, "absent": absent,
            "how": MASKED if told else ZEROS}
