"""Text encoders by name or folder, for every model that reads token ids: where one lies and what it can take.

A name on the hub becomes a folder once, from the local cache where it is there, so that everything behind this module
sees folders and nothing but ``encoder_folder`` can touch the network. What may change here: what is asked of a folder
before anything is trained. Loading the weights is the business of mmsa_decalign.encoder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.schema import Features
from ..errors import InputError

BERT_WIDTH = 768  # what MMSA writes into args for every text encoder
UNKNOWN_TOKEN = 100  # what MMSA's incomplete data holds for a hidden word: [UNK] of every published BERT
_REASON = 60  # letters of what the hub's client says that a message repeats
HUB_SECONDS = 5  # transformers itself goes on asking for half a minute

# MMSA's models that read token ids whatever `use_bert` says.
ALWAYS = ("bert_mag", "misa", "mmim", "self_mm", "tfr_net")
# The setting `transformers` of these names an architecture that the model does not have.
BERT_ONLY = ("bert_mag", "tfr_net")

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = {
    "bert": (("tokenizer.json",), ("vocab.txt",)),
    "roberta": (("tokenizer.json",), ("vocab.json", "merges.txt")),
}
_ANY_TOKENIZER = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("sentencepiece.bpe.model",),
                  ("spiece.model",), ("spm.model",))
_REMEDY = "give a folder with config.json, model.safetensors and vocab.txt or tokenizer.json: --pretrained DIR"


def encoder_folder(pretrained: str) -> Path:
    """The folder of a text encoder: itself, or of a hub name its copy in the local cache, fetched if it is not there.

    Raises InputError, after HUB_SECONDS at most, for a name that is neither cached nor to be had.
    """
    local = _local(pretrained)
    return local if local is not None else _fetch(pretrained)


def encoder_config(pretrained: str) -> dict[str, Any] | None:
    """config.json of a text encoder that is on this machine, else None; never touches the network."""
    local = _local(pretrained)
    return None if local is None or not (local / "config.json").is_file() else _read(local, pretrained)


def encoder_width(pretrained: str | None) -> int:
    """The hidden size of a text encoder; MMSA's 768 for one that is only known by name."""
    config = encoder_config(pretrained) if pretrained else None
    return int((config or {}).get("hidden_size", BERT_WIDTH))


def check_encoder(pretrained: str, baseline: Mapping[str, Any] | None = None, *, bert: bool = True) -> None:
    """Refuse a text encoder that is not there, has no configuration or weights, or, if `bert`, is no BERT.

    baseline: settings of one of MMSA's models, which also want the tokenizer and the architecture they name.
    """
    folder = encoder_folder(pretrained)
    if not (folder / "config.json").is_file():
        raise InputError(f"--pretrained {pretrained}: the folder has no config.json")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise InputError(f"--pretrained {pretrained}: the folder has no weights; expected one of {', '.join(_WEIGHTS)}")
    config = _read(folder, pretrained)
    if bert and "type_vocab_size" not in config:
        raise InputError(f"--pretrained {pretrained}: its config.json is not that of a BERT architecture")
    if baseline is not None:
        fixed = baseline.get("model_name") in BERT_ONLY
        check_kind(pretrained, config, "bert" if fixed else baseline.get("transformers", "bert"), fixed=fixed)
        check_tokenizer(folder, config["model_type"])


def check_kind(pretrained: str, config: Mapping[str, Any], wanted: str, *, fixed: bool = False) -> None:
    """Refuse an encoder of another architecture than the model will build: its weights would be random numbers."""
    if wanted not in _TOKENIZERS:
        raise InputError(f"setting transformers={wanted!r}: expected {' or '.join(_TOKENIZERS)}")
    found = config.get("model_type")
    if found != wanted:
        remedy = f"; add --set transformers={found}" if found in _TOKENIZERS and not fixed else ""
        raise InputError(f"--pretrained {pretrained}: holds a {found}, and this model builds a {wanted}{remedy}")


def check_tokenizer(folder: Path, kind: str) -> None:
    """Refuse a folder without a vocabulary, for which transformers makes up a tokenizer of five words."""
    if not tokenizer_files(folder, kind):
        known = _TOKENIZERS.get(kind, _ANY_TOKENIZER[:2])
        expected = " or ".join(" with ".join(names) for names in reversed(known))
        raise InputError(f"text encoder {folder} has no tokenizer: expected {expected} there.\n"
                         "Copy it from where the encoder came from, or save it with tokenizer.save_pretrained(DIR)")


def tokenizer_files(folder: Path, kind: str) -> list[Path]:
    """The files of a folder that hold its vocabulary; none where it has no tokenizer."""
    for names in _TOKENIZERS.get(kind, _ANY_TOKENIZER):
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    return []


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that its weights are loaded from, in the order in which transformers looks for them."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            if not name.endswith(".index.json"):
                return [folder / name]
            parts = json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / part for part in sorted(set(parts))]
    return []


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in the folder; raises InputError where transformers would make one up."""
    from transformers import AutoTokenizer

    check_tokenizer(folder, _read(folder, str(folder)).get("model_type", ""))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    special = len(tokenizer.all_special_tokens)
    if len(tokenizer) <= special:
        raise InputError(f"text encoder {folder}: its tokenizer knows {special} special tokens and no word; "
                         "expected the vocabulary the encoder was trained with")
    return tokenizer


def check_tokens(settings: Mapping[str, Any], features: Features) -> None:
    """Refuse token ids, segments or lengths that the text encoder in ``settings`` has no embedding for.

    Silent without token ids, and for an encoder that is not on this machine yet.
    """
    pretrained = settings.get("pretrained")
    config = encoder_config(pretrained) if settings.get("use_bert") and pretrained else None
    if config is None or "type_vocab_size" not in config:  # what a plugin makes of other architectures is its business
        return
    positions = config["max_position_embeddings"]
    if config.get("model_type") == "roberta":  # it counts positions from behind the padding id
        positions -= config.get("pad_token_id", 1) + 1
    for name, split in features.splits.items():
        if split.text_bert is None:
            continue
        here = f"{features.path}, split {name!r}, key 'text_bert'"
        ids, _, segments = split.text_bert.transpose(1, 0, 2)
        limits = (("token", ids, config["vocab_size"]), ("segment", segments, config["type_vocab_size"]))
        for what, rows, size in limits:
            if rows.min() < 0 or rows.max() >= size:
                raise InputError(f"{here}: {what} ids from {rows.min()} to {rows.max()}, but text encoder {pretrained} "
                                 f"has a vocabulary of {size}.\nThe file was made with another tokenizer: give the "
                                 "encoder that belongs to it with --pretrained")
        if ids.shape[1] > positions:
            raise InputError(f"{here}: {ids.shape[1]} tokens a sample, but text encoder {pretrained} has {positions} "
                             "positions; use another encoder, or a file with shorter token ids")
    if settings.get("data_missing") and config["vocab_size"] <= UNKNOWN_TOKEN:
        raise InputError(f"text encoder {pretrained} has a vocabulary of {config['vocab_size']}, and incomplete data "
                         f"holds {UNKNOWN_TOKEN}, BERT's [UNK], for hidden words; use an encoder that knows it")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no report on loading: what matters of it is checked."""
    from transformers.utils import logging as hub_logging

    bars, level = hub_logging.is_progress_bar_enabled(), hub_logging.get_verbosity()
    hub_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if bars:
            hub_logging.enable_progress_bar()


def _local(pretrained: str) -> Path | None:
    """The folder on this machine, or None for a hub name that is not, or not completely, in the cache."""
    path = Path(pretrained).expanduser()
    if path.is_dir():
        return path
    if pretrained.startswith((".", "~", os.sep)) or path.exists():
        raise InputError(f"--pretrained {pretrained}: expected a folder with a text encoder, or its name on the hub")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        files = [try_to_load_from_cache(pretrained, name) for name in ("config.json", *_WEIGHTS)]
    except HFValidationError:
        raise InputError(f"--pretrained {pretrained}: expected a folder with a text encoder, or its name on the hub "
                         "such as bert-base-uncased") from None
    config, *weights = (isinstance(file, str) for file in files)
    return Path(str(files[0])).parent if config and any(weights) else None


def _fetch(pretrained: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        # one question with a short limit; it also tells which files there are
        names = [file.rfilename for file in HfApi().model_info(pretrained, timeout=HUB_SECONDS).siblings or ()]
        weights = "model*.safetensors*" if any(name.endswith(".safetensors") for name in names) else "pytorch_model*"
        patterns = ["config.json", weights, "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json"]
        return Path(snapshot_download(pretrained, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise InputError(f"text encoder {pretrained!r} is neither a folder nor on the hub;\n{_REMEDY}") from error
    except OfflineModeIsEnabled as error:
        raise InputError(f"text encoder {pretrained!r} is neither a folder nor in the local cache (HF_HUB_OFFLINE is "
                         "set): --pretrained DIR") from error
    except Exception as error:  # of the HTTP library, the file system, the hub's own: all mean that it is not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = reason if len(reason) <= _REASON else f"{reason[:_REASON].rsplit(' ', 1)[0]} ..."
        raise InputError(f"text encoder {pretrained!r} is neither a folder nor in the local cache, and the hub cannot "
                         f"be asked ({reason});\n{_REMEDY}") from error


def _read(folder: Path, pretrained: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--pretrained {pretrained}: its config.json cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"--pretrained {pretrained}: its config.json holds no JSON object")
    return config
