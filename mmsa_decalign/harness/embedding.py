"""A frozen text encoder with its tokenizer, as `data.embed` wants one: texts to tokens, tokens to hidden states.

Every architecture of transformers that looks both ways is taken, not only BERT: what an encoder is, is found out by a
trial of two made-up texts. What may change here: what is asked of an encoder, and how batches are formed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..data.embed import Progress, embed, place
from ..data.reading import sha256_of
from ..errors import InputError
from . import machine
from .encoders import check_encoder, encoder_folder, load_tokenizer, quiet_transformers, tokenizer_files, weight_files

_SAME = 1e-6  # of hidden states, which are of the order of 1


def embed_file(
    source: str | os.PathLike[str], encoder: str, out: str | os.PathLike[str] | None = None, *,
    device: str = "auto", batch_size: int = 32, progress: Progress | None = None, **options: Any,
) -> dict[str, Any]:
    """`data.embed.embed` with the text encoder of that name or folder; options are those of `embed`."""
    source, out = place(source, out, encoder)
    with _named_as_typed():
        frozen = FrozenEncoder(encoder, machine.pick_device(device), batch_size)
    return embed(source, out, frozen, progress=progress, **options)


class FrozenEncoder:
    """See `data.embed.Encoder`. Weights are as in `load_encoder`, in float32 and without dropout.

    Raises InputError for what is no encoder: no weights, no tokenizer, a decoder.
    """

    def __init__(self, name: str, device: Any, batch_size: int = 32) -> None:
        from ..encoder import load_encoder

        check_encoder(name, bert=False)
        folder = encoder_folder(name)
        with quiet_transformers():
            self.tokenizer = load_tokenizer(folder)
            self.model = load_encoder(str(folder), bert=False).float().eval().requires_grad_(False)
        config = self.model.config
        if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "vocab_size"):
            raise InputError(f"text encoder {name!r} is a {config.model_type}, which is no encoder of token ids: "
                             "expected one such as BERT, RoBERTa or MPNet")
        self.name, self.device, self.batch_size = name, device, batch_size
        self.special: int = self.tokenizer.num_special_tokens_to_add()
        self._takes_segments = getattr(config, "type_vocab_size", 0) > 0
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        states = self._trial(max(4, self.special + 2))
        self.width: int = states.shape[2]
        if abs(states[0, 0] - states[1, 0]).max() < _SAME:
            raise InputError(f"text encoder {name!r} is a {config.model_type} that only looks back, a decoder: "
                             "expected an encoder such as BERT, RoBERTa or MPNet")
        if self.tokenizer.pad_token_id is None:
            raise InputError(f"text encoder {name!r}: its tokenizer has no padding token")
        self.model.to(device)
        self.about: dict[str, str | int | None] = {
            "encoder": name, "kind": config.model_type, "width": self.width,
            "revision": folder.name if folder.parent.name == "snapshots" else None,
            "weights_sha256": _hash(weight_files(folder)),
            "tokenizer": type(self.tokenizer).__name__,
            "tokenizer_sha256": _hash(tokenizer_files(folder, config.model_type)),
            **{library: machine.versions()[library] for library in ("transformers", "torch")},
        }

    def check_length(self, length: int) -> None:
        """Raise InputError where it has fewer positions."""
        try:
            self._trial(length)
        except InputError:
            raise InputError(f"--length {length}: text encoder {self.name!r} takes fewer tokens "
                             f"({getattr(self.model.config, 'max_position_embeddings', '?')} positions)") from None

    def tokens(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, length) int64: ids, attention mask, segments, with special tokens; (N,) bool: what was cut."""
        with quiet_transformers():  # it warns of texts that are longer than the encoder's positions
            made = self.tokenizer(texts, padding="max_length", truncation=True, max_length=length,
                                  return_attention_mask=True)
            whole = self.tokenizer(texts, return_attention_mask=False)["input_ids"]
        ids = np.array(made["input_ids"], np.int64)
        segments = np.array(made["token_type_ids"], np.int64) if self._takes_segments and "token_type_ids" in made \
            else np.zeros_like(ids)
        return (np.stack([ids, np.array(made["attention_mask"], np.int64), segments], axis=1),
                np.array([len(one) > length for one in whole]))

    def words(self, ids: list[int]) -> str:
        """The text that token ids stand for."""
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def fit(self, tokens: np.ndarray, length: int, where: str) -> np.ndarray:
        """Token ids (N, 3, L) brought to another length; the special token at the end of a text stays its last."""
        config, (ids, mask, segments) = self.model.config, tokens.transpose(1, 0, 2)
        segments_known = max(getattr(config, "type_vocab_size", 0), 1)
        for what, rows, size in (("token", ids, config.vocab_size), ("segment", segments, segments_known)):
            if rows.min() < 0 or rows.max() >= size:
                raise InputError(f"{where}: {what} ids from {rows.min()} to {rows.max()}, but text encoder "
                                 f"{self.name!r} has a vocabulary of {size}.\n"
                                 "Use --from raw_text, or the encoder that the file was made with.")
        fitted = np.zeros((len(tokens), 3, length), np.int64)
        fitted[:, 0] = self.tokenizer.pad_token_id
        kept = min(length, tokens.shape[2])
        fitted[:, :, :kept] = tokens[:, :, :kept]
        fitted[:, 1] = fitted[:, 1] > 0
        if tokens.shape[2] > length and self.tokenizer.sep_token_id is not None:
            fitted[(mask[:, length:] > 0).any(axis=1), 0, -1] = self.tokenizer.sep_token_id
        return fitted

    def states(self, tokens: np.ndarray) -> np.ndarray:
        """(N, length, width) float32: last hidden states, zero where the attention mask is."""
        import torch

        out = np.zeros((len(tokens), tokens.shape[2], self.width), np.float32)
        attended = tokens[:, 1] > 0
        lengths = np.where(attended, np.arange(1, tokens.shape[2] + 1), 0).max(axis=1)
        order = np.argsort(-lengths, kind="stable")  # texts of like length together: hardly any padding is computed
        for start in range(0, len(order), self.batch_size):
            rows = order[start:start + self.batch_size]
            steps = max(int(lengths[rows[0]]), 1)
            batch = torch.from_numpy(tokens[rows, :, :steps]).to(self.device)
            out[rows, :steps] = self._call(batch).cpu().numpy() * attended[rows, :steps, None]
        return out

    def _call(self, tokens: Any) -> Any:
        import torch

        ids, mask, segments = tokens.unbind(dim=1)
        more = {"token_type_ids": segments} if self._takes_segments else {}
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=mask, **more).last_hidden_state.float()

    def _trial(self, length: int) -> np.ndarray:
        """Hidden states of two made-up texts that differ in their last token; InputError where there are none."""
        import torch

        tokens = torch.zeros(2, 3, length, dtype=torch.int64)
        tokens[:, 0] = self.model.config.vocab_size - 1  # the padding id would not count as a position
        tokens[1, 0, -1] -= 1
        tokens[:, 1] = 1
        try:
            states = self._call(tokens.to(next(self.model.parameters()).device))
        except Exception as error:  # each architecture has its own way to take offence
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"text encoder {self.name!r} is a {self.model.config.model_type}, which makes no hidden "
                             f"states of token ids ({reason})") from error
        return states.cpu().numpy()


def _hash(files: list[Path]) -> str | None:
    """SHA-256 of a file, or that of the lines "hash  name" of several; None of none."""
    if len(files) == 1:
        return sha256_of(files[0])
    lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest() if files else None


@contextmanager
def _named_as_typed() -> Iterator[None]:
    """Messages about text encoders name the option of a training; here it is --encoder."""
    try:
        yield
    except InputError as error:
        text = str(error).replace("; or set use_bert=false for precomputed text features", "")
        raise InputError(text.replace("--pretrained", "--encoder")) from error
