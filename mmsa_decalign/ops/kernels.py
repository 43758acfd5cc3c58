"""The sum over pairs of samples that a maximum mean discrepancy is, for M samples at once, with its derivative.

Lives here: `pooled_mmd`, what mmd.py and losses.py call for bandwidths that are numbers. The derivative is worked out
along with the value, block of rows by block of rows: nothing of size N^2 outlives a block, whatever N is. That relies
on the result being one number, whose derivative only has to be scaled in the backward pass. There is no second one.
May change: the arithmetic, but not the care about distances: see `_squares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .envelope import Envelope, wants_slopes

BLOCK = 1 << 17  # entries of the kernel matrix that are held at once: 1 MB, which stays in a processor's cache
PRODUCT_RANGE = 1e3  # squared distance from the centre over bandwidth up to which |x|^2 + |y|^2 - 2 x.y is taken


def pooled_mmd(samples: Tensor, counts: Sequence[int], bandwidths: Sequence[float]) -> Tensor:
    """Mean over unordered pairs of the M samples of their squared MMD, summed over bandwidths.

    samples: (N_1 + ... + N_M, p) in float64, one sample after the other; counts: N_1, ..., N_M, with M >= 2.
    """
    differentiable = wants_slopes(samples)
    with torch.no_grad():
        z = samples - samples.mean(dim=0)
        owner, weights, whole = _weights(tuple(counts), z.dtype, z.device)
        norms = z.square().sum(dim=1)
        near = float(norms.max()) <= PRODUCT_RANGE * min(bandwidths)
        rows = max(1, BLOCK // len(z))
        totals, slopes = [], []
        for begin in range(0, len(z), rows):
            block = z[begin : begin + rows]
            squares = _squares(block, z, norms[begin : begin + rows], norms, near)
            weight = whole if whole is not None and rows >= len(z) else weights[owner[begin : begin + rows]]
            slope = None
            for i, s in enumerate(bandwidths):
                last = i == len(bandwidths) - 1  # then the distances themselves are not needed any more
                kernel = torch.mul(squares, -0.5 / s, out=squares if last else None).exp_().mul_(weight)
                sums = kernel.sum(dim=1, keepdim=True)
                totals.append(sums.sum())
                if differentiable:  # of exp(-|x - y|^2 / 2s), each pair met twice: -2 (x - y) k / s
                    own = torch.addcmul(kernel @ z, block, sums, value=-1).mul_(2.0 / s)
                    slope = own if slope is None else slope.add_(own)
            slopes.append(slope)
        value = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
        if not differentiable:
            return value
        slope = slopes[0] if len(slopes) == 1 else torch.cat(slopes)
    return Envelope.apply(value, [slope], samples)


def _squares(x: Tensor, y: Tensor, x_norms: Tensor, y_norms: Tensor, near: bool) -> Tensor:
    """|x_i - y_j|^2 of centred points; where all are near the centre by a product of matrices, many times faster.

    The product loses digits of those distances that are small beside the distance from the centre: some 1e-16 times its
    square. As far as PRODUCT_RANGE goes that is 1e-13 of a bandwidth; beyond, the differences are formed one by one.
    """
    if near:
        return torch.addmm(y_norms.unsqueeze(0), x, y.mT, alpha=-2).add_(x_norms.unsqueeze(1)).clamp_min_(0.0)
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


@lru_cache(maxsize=64)
def _weights(counts: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which sample a row belongs to (N_1 + ...,), what k(row of sample m, other row) counts (M, N_1 + ...), and the
    same for every row where it is small enough to be kept.

    Within a sample (M - 1) / N_m^2, as often as it is in a pair; between two -1 / (N_m N_n), met from both sides; all
    over the number of pairs.
    """
    m = len(counts)
    sizes = torch.tensor(counts, dtype=dtype)
    between = (m * torch.eye(m, dtype=dtype) - 1) / (sizes.unsqueeze(0) * sizes.unsqueeze(1)) / (m * (m - 1) / 2)
    owner = torch.repeat_interleave(torch.arange(m), torch.tensor(counts))
    owner, weights = owner.to(device), between[:, owner].to(device)
    return owner, weights, weights[owner] if len(owner) ** 2 <= BLOCK else None
