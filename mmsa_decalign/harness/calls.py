"""In which calls of the model a split is predicted, so that rounding does not depend on what is predicted at once.

torch chooses a kernel by the shape of a call, and its kernels round float32 differently: the same sample predicted with
1, 7 and 32 others differs by some 1e-6. What may change here: ENOUGH and LANES, if torch's kernels do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .datasets import BatchSampler

ENOUGH, LANES = 32, 8  # with so many rows, a multiple of LANES, a call is rounded as any larger one


def calls_of(
    rows: Sequence[int], samples: int, size: int, *, most: int, as_in_run: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """The calls for ``rows`` of a split of ``samples``: (rows of the call, places in it of those wanted), in order.

    A call has ``size`` rows, those of the run. With fewer wanted at once, at most ``most``, it is filled up by
    repetition until the same kernels are chosen. With ``as_in_run``, in the file of the run itself, calls do not go
    over the borders of its batches, and the last batch of a split, which has another size, is computed as it was then.
    """
    enough = size if size < ENOUGH or size % LANES else ENOUGH
    wanted = set(rows)
    batches = list(BatchSampler(samples, size)) if as_in_run else [
        list(rows[start:start + size]) for start in range(0, len(rows), size)]
    for batch in batches:
        own = [row for row in batch if row in wanted]
        if as_in_run and own and 1 < len(batch) != size:
            yield batch, [batch.index(row) for row in own]
            continue
        for start in range(0, len(own), most):
            part = own[start:start + most]
            # Many of MMSA's models fail on a single row, of which squeeze() makes none.
            yield part + part[:1] * (max(enough, 2) - len(part)), list(range(len(part)))
