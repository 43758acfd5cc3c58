"""`mmsa data embed`: the text features of a file made anew by a text encoder, from its sentences or its token ids.

Here is what concerns the file: which tokens, whether they are the encoder's, pieces of states into a converted file,
and what that file says of its making. The encoder itself is handed in, since this layer does not know torch. What may
change here: further ways to pool.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import InputError
from .arrays import as_strings, last_nonzero, token_array
from .convert import SUFFIX, take_kept, write_features
from .mapped import Streamed
from .reading import read_file, sha256_of
from .schema import SPLITS, check_splits

STEPS = 50  # where the file has no sequence of text, as in MMSA's published files
SHORTEST = 3  # a text and the two special tokens around it
SOURCES = ("raw_text", "text_bert")
POOLS = ("none", "mean")
_ROWS = 512  # of states in memory at once: 80 MB for 50 steps of width 768
_CHECKED = 200  # samples a split in which token ids are compared
_ALIKE = 0.9  # share of these that must have the encoder's own ids; with another vocabulary it is about 0

Progress = Callable[[int, int], None]  # samples done, samples in all


class Encoder(Protocol):
    """A frozen text encoder with its tokenizer."""

    width: int
    special: int  # tokens that it puts around a text
    about: Mapping[str, str | int | None]  # where its numbers come from

    def check_length(self, length: int) -> None:
        """Raise InputError where it cannot take texts of so many tokens."""

    def tokens(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, length) int64: ids, attention mask, segments; (N,) bool: what was cut."""

    def words(self, ids: list[int]) -> str:
        """The text that token ids stand for."""

    def fit(self, tokens: np.ndarray, length: int, where: str) -> np.ndarray:
        """Token ids (N, 3, L) of its own vocabulary brought to another length; raises InputError for others."""

    def states(self, tokens: np.ndarray) -> np.ndarray:
        """(N, length, width) float32: last hidden states, zero where the attention mask is."""


def place(source: str | os.PathLike[str], out: str | os.PathLike[str] | None, encoder: str) -> tuple[Path, Path]:
    """The file to read and the one to write, which is not there yet; without `out` beside `source`, with both names."""
    source = Path(source).expanduser()
    if out is None:
        out = source.with_name(f"{source.stem}-{Path(encoder).expanduser().resolve().name}{SUFFIX}")
    out = Path(out).expanduser()
    if out.suffix != SUFFIX:
        raise InputError(f"{out}: expected a name that ends in {SUFFIX}, which says what is in it.\n"
                         f"For example {out.with_suffix(SUFFIX).name}.")
    if os.path.lexists(out):
        raise InputError(f"{out}: is there already.\nRemove it, or name another file with --out.")
    return source, out


def embed(
    source: Path, out: Path, encoder: Encoder, *, take: str | None = None, length: int | None = None,
    pool: str = "none", allow_empty: bool = False, progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the features of `source` to `out` with text features of `encoder`, and say what was made.

        text          (N, length, width) float32: the encoder's last hidden states, those of its special tokens too as
                      in MMSA's own BERT features; zero behind the last token. pool="mean": their mean, (N, 1, width)
        text_bert     (N, 3, length) int64: the tokens they are of
        text_lengths  (N,) int64: steps that are not padding

    Everything else that a training reads is kept as `convert` keeps it. take: tokens from "raw_text", tokenised anew,
    or from "text_bert", which must be ids of the encoder's vocabulary: of up to 200 samples a split nine in ten must be
    what its tokenizer makes of the raw_text beside them, or, in a file without, of the words that the ids stand for.
    None takes raw_text where there is some. length: as many steps as the file's text has, or else its text_bert, or 50.
    States are made in pieces and written at once, so that no array of them is in memory whole.

    Returns schema_version, source and path with their sizes and sha256, samples {split}, steps, width, cut {split:
    texts longer than length}, embedded (what the file says of the encoder, see `reading.embedding_of`).

    Raises InputError for a file that cannot be read or has neither key, for ids of another vocabulary, and, unless
    `allow_empty`, for samples without text.
    """
    if length is not None and length < SHORTEST:
        raise InputError(f"--length {length}: expected {SHORTEST} or more, a text and the special tokens around it")
    data = read_file(source)
    check_splits(data, source)
    splits = {name: dict(data.pop(name)) for name in SPLITS}  # copies: files exist whose splits share one dictionary
    take = _source(splits, source, take)
    if length is None:
        length = max(_steps(splits), SHORTEST)
    encoder.check_length(length)
    tokens, cut, kept = {}, {}, {}
    for name, raw in splits.items():
        for key in ("text", "text_lengths"):
            raw.pop(key, None)  # first of all, since it is the largest
        here = f"{source}: split {name!r}"
        tokens[name], cut[name] = _tokens(raw, encoder, take, length, here)
        tokens[name] = _without_empty(tokens[name], raw, encoder, allow_empty, here)
        raw.pop("text_bert", None)
        kept |= take_kept(raw, name, source)
    counts = {name: len(rows) for name, rows in tokens.items()}
    for name, value in kept.items():
        if len(value) != counts[name.partition("/")[0]]:
            raise InputError(f"{source}: {name} has {len(value)} rows, and {take} has "
                             f"{counts[name.partition('/')[0]]}.\nEvery key of a split needs one row per sample.")
    about = {**encoder.about, "tokens_from": take, "length": length, "pool": pool, "special_tokens": "kept"}
    steps = 1 if pool == "mean" else length
    total, done = sum(counts.values()), 0

    def pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
        nonlocal done
        for start in range(0, len(rows), _ROWS):
            piece = rows[start:start + _ROWS]
            states = encoder.states(piece)
            if not np.isfinite(states).all():
                raise InputError(f"text encoder {about['encoder']!r} gives NaN or Inf: its weights are damaged.")
            done += len(piece)
            if progress is not None:
                progress(done, total)
            yield states if pool == "none" else states.sum(axis=1, keepdims=True) / piece[:, 1].sum(1)[:, None, None]

    for name, rows in tokens.items():
        shape = (len(rows), steps, encoder.width)
        kept[f"{name}/text"] = Streamed(shape, np.dtype(np.float32), pieces(rows))
        kept[f"{name}/text_bert"] = rows
        kept[f"{name}/text_lengths"] = np.minimum(last_nonzero(rows[:, 1, :, None]), steps)
    hashes = sha256_of(source)
    write_features(source, out, kept, hashes, about)
    return {
        "schema_version": 1,
        "source": {"path": str(source), "size": source.stat().st_size, "sha256": hashes},
        "path": str(out), "size": out.stat().st_size, "sha256": sha256_of(out),
        "samples": counts, "steps": steps, "width": encoder.width, "cut": cut, "embedded": about,
    }  # fmt: skip


def print_embedded(result: Mapping[str, Any], console: Any) -> None:
    """What `embed` did, in a few lines for a rich console."""
    counts = ", ".join(f"{split} {count}" for split, count in result["samples"].items())
    lines = [f"wrote {result['path']}", f"samples: {counts}; text {result['steps']}x{result['width']}",
             *embedding_lines(result["embedded"])]
    if cut := {split: count for split, count in result["cut"].items() if count}:
        lines.append(f"cut to {result['embedded']['length']} tokens: "
                     + ", ".join(f"{count} of {split}" for split, count in cut.items()))
    lines.append(f"SHA-256: {result['sha256']}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def embedding_lines(about: Mapping[str, Any]) -> list[str]:
    """What a file says of the encoder that made its text, for people."""
    def shown(key: str) -> str:
        return "".join(letter for letter in str(about.get(key)) if letter.isprintable())

    revision = f", revision {shown('revision')}" if about.get("revision") else ""
    mean = ", their mean" if about.get("pool") == "mean" else ""
    return [f"text: last hidden states of {shown('encoder')} ({shown('kind')}){revision}, {shown('length')} tokens "
            f"from {shown('tokens_from')}{mean}",
            f"weights SHA-256 {shown('weights_sha256')}, tokenizer SHA-256 {shown('tokenizer_sha256')}"]


def _source(splits: Mapping[str, Mapping[str, Any]], source: Path, take: str | None) -> str:
    """Which key the tokens come from."""
    has = {key: all(raw.get(key) is not None for raw in splits.values()) for key in SOURCES}
    if take is not None and not has[take]:
        others = [key for key in SOURCES if has[key]]
        raise InputError(f"{source}: not every split has the key {take!r}, which --from names.\n"
                         + (f"Use --from {others[0]}." if others else "A file needs raw_text or text_bert for it."))
    if not any(has.values()):
        raise InputError(f"{source}: has neither 'raw_text' nor 'text_bert' in every split, so there is nothing to "
                         "embed.\nAdd the sentences as raw_text, one for each sample.")
    return take or ("raw_text" if has["raw_text"] else "text_bert")


def _steps(splits: Mapping[str, Mapping[str, Any]]) -> int:
    """Steps of the file's text, of its token ids where it has one step or none, else STEPS."""
    def longest(key: str, axis: int) -> int:
        shapes = [np.shape(raw.get(key)) for raw in splits.values() if isinstance(raw.get(key), np.ndarray)]
        return max((shape[axis] for shape in shapes if len(shape) == 3), default=0)

    text, tokens = longest("text", 1), longest("text_bert", 2)
    return text if text > 1 else tokens if tokens > 1 else STEPS


def _tokens(
    raw: Mapping[str, Any], encoder: Encoder, take: str, length: int, here: str
) -> tuple[np.ndarray, int]:
    texts = None if raw.get("raw_text") is None else as_strings(raw["raw_text"], f"{here}, key 'raw_text'")
    if take == "raw_text":
        if not texts:
            raise InputError(f"{here} is empty; expected at least one sample in each of train, valid and test.")
        tokens, cut = encoder.tokens(texts, length)
        return tokens, int(cut.sum())
    where = f"{here}, key 'text_bert'"
    given = token_array(raw["text_bert"], where)
    if not given.size:
        raise InputError(f"{where} is empty; expected tokens of at least one sample.")
    tokens = encoder.fit(given, length, where)  # refuses ids that do not exist
    _check_vocabulary(given, texts, encoder, where)
    return tokens, int((last_nonzero(given[:, 1, :, None]) > length).sum())


def _check_vocabulary(given: np.ndarray, texts: list[str] | None, encoder: Encoder, where: str) -> None:
    """Refuse ids of another vocabulary. Only what the tokenizer itself makes of a text is proof: numbers always fit."""
    rows = np.unique(np.linspace(0, len(given) - 1, _CHECKED).astype(int))
    ids = [given[row, 0][given[row, 1] > 0].tolist() for row in rows]
    if texts is not None and len(texts) != len(given):
        raise InputError(f"{where} has {len(given)} rows, and raw_text has {len(texts)}.\n"
                         "Every key of a split needs one row per sample.")
    inner = slice(1, -1) if encoder.special >= 2 else slice(None)
    sentences = [encoder.words(one[inner]) for one in ids] if texts is None else [texts[row] for row in rows]
    own, _ = encoder.tokens(sentences, max(given.shape[2], SHORTEST))
    same = [one == row[0][row[1] > 0].tolist() for one, row in zip(ids, own, strict=True) if one]
    if same and sum(same) < _ALIKE * len(same):
        what = "the words they stand for" if texts is None else "raw_text"
        raise InputError(f"{where}: the ids are not those of text encoder {encoder.about['encoder']!r}: its tokenizer "
                         f"makes the same of {what} in {sum(same)} of {len(same)} samples.\n"
                         "Use --from raw_text, or the encoder that the file was made with.")


def _without_empty(
    tokens: np.ndarray, raw: Mapping[str, Any], encoder: Encoder, allow_empty: bool, here: str
) -> np.ndarray:
    """Refuse texts that are special tokens alone; allowed, one without any token gets its first step."""
    empty = np.flatnonzero(tokens[:, 1].sum(axis=1) <= encoder.special)
    if len(empty) and not allow_empty:
        ids = as_strings(raw["id"], f"{here}, key 'id'") if raw.get("id") is not None else []
        first = repr(ids[empty[0]]) if len(ids) == len(tokens) else f"row {empty[0]}"
        raise InputError(f"{here} has {len(empty)} sample{'s' * (len(empty) > 1)} without text, {first} first.\n"
                         "Remove them, or use --allow-empty: the special tokens alone are embedded.")
    tokens[tokens[:, 1].sum(axis=1) == 0, 1, 0] = 1
    return tokens
