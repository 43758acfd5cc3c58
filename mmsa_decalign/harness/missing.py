"""Incomplete data: which steps of a sample a model does not get to see, as tfr_net trains on them.

Of every modality a share ``missing_rate`` of the valid steps is hidden, drawn once per split from ``missing_seed``.
The draw is MMSA's own, number for number, without its side effect: the global state of NumPy stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .encoders import UNKNOWN_TOKEN


def valid_steps(lengths: Sequence[int] | np.ndarray, steps: int) -> np.ndarray:
    """(N, steps) int64: 1 where t < lengths[n], else 0."""
    return (np.arange(steps) < np.asarray(lengths)[:, None]).astype(np.int64)


def seen_steps(valid: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """1 where a step is valid and u > rate with u uniform on [0, 1), else 0; in the type of ``valid`` (N, T)."""
    return (np.random.RandomState(seed).uniform(size=valid.shape) > rate) * valid


def hide_tokens(tokens: np.ndarray, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (N, 3, L) with hidden words replaced by [UNK], and which were seen (N, L).

    The first and the last token of a sample, [CLS] and [SEP], are always seen. Every sample has at least one token.
    """
    ids, valid, segments = tokens.transpose(1, 0, 2)
    seen = seen_steps(valid, rate, seed)
    rows = np.arange(len(seen))
    seen[:, 0] = 1
    seen[rows, valid.sum(axis=1).astype(int) - 1] = 1
    shown = seen * ids + UNKNOWN_TOKEN * (valid - seen)
    return np.stack([shown, valid, segments], axis=1), seen


def incomplete(
    tokens: np.ndarray,
    steps: Mapping[str, int],
    lengths: Mapping[str, np.ndarray],
    rates: Sequence[float],
    seeds: Sequence[int],
) -> dict[str, np.ndarray]:
    """What MMSA's samples hold beside the complete data, but for the hidden features, which are data times mask.

    steps, lengths: of "audio" and "vision". rates, seeds: of text, audio, vision, as in MMSA's settings. Returns
    text_m (N, 3, L) and text_missing_mask (N, L), and for audio and vision a mask of the valid and a missing_mask of
    the seen steps (N, T).
    """
    arrays: dict[str, np.ndarray] = {}
    text_m, seen = hide_tokens(tokens, rates[0], seeds[0])
    arrays["text_m"], arrays["text_missing_mask"] = text_m.astype(np.float32), seen.astype(np.float32)
    for modality, rate, seed in zip(("audio", "vision"), rates[1:], seeds[1:], strict=True):
        valid = valid_steps(lengths[modality], steps[modality])
        arrays[f"{modality}_mask"] = valid
        arrays[f"{modality}_missing_mask"] = seen_steps(valid, rate, seed).astype(np.float32)
    return arrays
