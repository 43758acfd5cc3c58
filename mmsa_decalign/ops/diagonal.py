"""EM of mixtures with diagonal covariances, for all modalities at once, with its derivative written out.

Lives here: `DiagonalEM`, what `mixture.py` calls for covariance="diag". One function of its own because five EM steps
are some hundred small tensor operations: recorded one by one, autograd's bookkeeping costs several times their
arithmetic. It relies on the steps being a chain: the parameters of a step depend on the features and on the
responsibilities before it, and on nothing else: one backward sweep over the saved steps is the whole derivative.
What is large, the differences (M, K, N, d), is made in a buffer that a processor's cache holds, as many samples at a
time as fit, and never kept: making it again is cheaper than reading it from memory, and the fit needs next to none.
Layout: M modalities, K components, N samples, d dimensions, in this order; responsibilities are (M, K, N).
Every sum over samples is made here, in `start`, `m_step` and `backward`: a data-parallel version would add its
reductions there.
May change: the arithmetic, as long as the NumPy reference agrees. There is no second derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

COUNT_FLOOR = 1e-6  # expected samples of a component; below it the division that makes its mean is meaningless
WEIGHT_FLOOR = 1e-8  # keeps log(weight) finite for a component that has lost all of its samples
ROOM = 1 << 18  # numbers in the buffer: 2 MB
LEAST = 32  # samples at a time, however large the buffer is then: products of fewer are mostly overhead


class Step(NamedTuple):
    """Parameters and the responsibilities that follow from them."""

    count: Tensor  # (M, K) expected samples, floored
    shares: Tensor | None  # (M, K, N) responsibilities over the count; None at the start, which has none
    means: Tensor  # (M, K, d)
    variances: Tensor  # (M, K, d)
    responsibilities: Tensor  # (M, K, N)


class DiagonalEM(torch.autograd.Function):
    """(x (M, N, d), rows, n_iter, var_floor) to weights (M, K), means and variances (M, K, d), r (M, K, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Sequence[int], n_iter: int, var_floor: float) -> tuple[Tensor, ...]:
        room = Room(x, len(rows))
        steps = [start(x, rows, var_floor, room)]
        for _ in range(n_iter):
            steps.append(m_step(x, steps[-1].responsibilities, var_floor, room))
        last = steps[-1]
        ctx.rows, ctx.var_floor = list(rows), var_floor
        ctx.save_for_backward(x, *(part for step in steps for part in step))
        ctx.set_materialize_grads(False)
        return last.count / x.shape[1], last.means, last.variances, last.responsibilities

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        size = len(Step._fields)
        steps = [Step(*saved[i : i + size]) for i in range(0, len(saved), size)]
        some_floored = bool((torch.stack([step.count for step in steps]) <= _least_count(x)).any())
        to_weights, to_means, to_variances, to_r = gradients
        room = Room(x, len(ctx.rows))
        left, plain, shifted = [], [], []  # of all steps, for _to_samples
        for index in range(len(steps) - 1, -1, -1):
            step = steps[index]
            room.about(step.means)
            level: Tensor | float = 0.0  # what a component's logits get together
            if to_r is not None:  # through the softmax and the logarithm of the density
                pull = step.responsibilities * to_r
                logits = torch.addcmul(pull, step.responsibilities, pull.sum(dim=1, keepdim=True), value=-1)
                level = logits.sum(dim=2)
                inverse = step.variances.reciprocal()
                by_difference, by_square = room.over_samples(logits).chunk(2, dim=2)
                to_means = _sum(to_means, inverse * by_difference)
                curve = torch.addcmul(level.unsqueeze(2), inverse, by_square, value=-1)
                to_variances = _sum(to_variances, curve.mul_(inverse).mul_(-0.5))
                left.append(logits)
                plain.append(inverse)
                shifted.append(inverse * step.means)
            if index == 0:
                break
            to_means = torch.zeros_like(step.means) if to_means is None else to_means
            to_variances = torch.zeros_like(step.means) if to_variances is None else to_variances
            to_variances = to_variances * (step.variances > ctx.var_floor)
            if some_floored:
                level = level * (step.count > WEIGHT_FLOOR * x.shape[1])
            if to_weights is not None:
                level = level + to_weights * (step.count / x.shape[1])
            level = level - (to_variances * step.variances).sum(dim=2)
            if some_floored:
                # A count on its floor does not move with the mass, and the mean is not the mean of its shares there.
                held = step.count <= COUNT_FLOOR
                missing = (1 - step.shares.sum(dim=2)).unsqueeze(2)
                to_means = torch.addcmul(to_means, to_variances * step.means, missing, value=-2)
                level = torch.where(held, (to_means * step.means).sum(dim=2), level)
            twice = to_variances * -2
            left.append(step.shares)
            plain.append(twice)
            shifted.append(torch.addcmul(to_means, twice, step.means))
            to_r = room.over_dimensions(torch.cat([to_means, to_variances], dim=2))
            to_r = to_r.add_(level.unsqueeze(2)).div_(step.count.unsqueeze(2))
            to_weights = to_means = to_variances = None
        to_x = _to_samples(x, left, plain, shifted)
        if to_means is not None:
            to_x.index_add_(1, torch.tensor(ctx.rows, device=x.device), to_means)
        if to_variances is not None:
            together = to_variances.sum(dim=1, keepdim=True) * (steps[0].variances[:, :1] > ctx.var_floor)
            to_x += (x - x.mean(dim=1, keepdim=True)) * (together * (2 / x.shape[1]))
        return to_x, None, None, None


class Room:
    """Sums of x - mean and of its square, over samples or over dimensions, a cache's worth of samples at a time.

    Difference and square lie side by side, (M K, n, 2d), so that one product takes both.
    """

    def __init__(self, x: Tensor, k: int) -> None:
        m, n, d = x.shape
        self.x, self.shape = x.unsqueeze(1), (m, k, n, d)
        size = min(n, max(LEAST, ROOM // (m * k * 2 * d)))
        self.both = x.new_empty(m, k, size, 2 * d)
        self.parts = [slice(begin, min(begin + size, n)) for begin in range(0, n, size)]
        self.filled: slice | None = None

    def about(self, means: Tensor) -> None:
        """From now on the differences are those from `means` (M, K, d)."""
        self.means, self.filled = means.unsqueeze(2), None

    def _fill(self, part: slice) -> Tensor:
        m, k, _, d = self.shape
        both = self.both[:, :, : part.stop - part.start]
        if self.filled != part:
            difference = torch.sub(self.x[:, :, part], self.means, out=both[..., :d])
            torch.mul(difference, difference, out=both[..., d:])
            self.filled = part
        return both.flatten(0, 1)

    def over_samples(self, weights: Tensor, only_squares: bool = False) -> Tensor:
        """sum_n weights[m, k, n] (difference, square)[m, k, n]: (M, K, 2d), or (M, K, d) of the squares."""
        m, k, n, d = self.shape
        weights, total = weights.view(m * k, 1, n), None
        for part in self.parts:
            both = self._fill(part)
            found = torch.bmm(weights[..., part], both[..., d:] if only_squares else both)
            total = found if total is None else total.add_(found)
        return total.view(m, k, -1)

    def over_dimensions(self, weights: Tensor, only_squares: bool = False) -> Tensor:
        """sum_d weights[m, k, d] (difference, square)[m, k, n, d], or of the squares only: (M, K, N)."""
        m, k, n, d = self.shape
        weights, found = weights.view(m * k, 1, -1), []
        for part in reversed(self.parts):  # the last one is still there
            both = self._fill(part)
            found.append(torch.bmm(weights, (both[..., d:] if only_squares else both).mT))
        return (found[0] if len(found) == 1 else torch.cat(found[::-1], dim=2)).view(m, k, n)


def start(x: Tensor, rows: Sequence[int], var_floor: float, room: Room) -> Step:
    """Means are `rows` of the batch, variances those of the whole batch, weights equal."""
    m, n, d = x.shape
    means = x[:, rows]
    variances = (x - x.mean(dim=1, keepdim=True)).square_().mean(dim=1, keepdim=True).clamp_min_(var_floor)
    variances = variances.expand(m, len(rows), d).contiguous()
    count = x.new_full((m, len(rows)), n / len(rows))
    room.about(means)
    return _e_step(count, None, means, variances, room)


def m_step(x: Tensor, responsibilities: Tensor, var_floor: float, room: Room) -> Step:
    """New parameters from responsibilities (M, K, N), and the responsibilities that follow from them."""
    count = responsibilities.sum(dim=2).clamp_min_(COUNT_FLOOR)
    shares = responsibilities / count.unsqueeze(2)
    means = torch.bmm(shares, x)
    room.about(means)  # differences from the new means: E[x^2] - mean^2 would cancel
    variances = room.over_samples(shares, only_squares=True).clamp_min_(var_floor)
    return _e_step(count, shares, means, variances, room)


def _e_step(count: Tensor, shares: Tensor | None, means: Tensor, variances: Tensor, room: Room) -> Step:
    """Responsibilities of the parameters, whose means the room is about: softmax of log weight + log density.

    What all components have in common is left out: d log(2 pi), and log N in the weight.
    """
    level = torch.add(_log_count(count, room.shape[2]), variances.log().sum(dim=2), alpha=-0.5)
    squares = room.over_dimensions(variances.reciprocal(), only_squares=True)
    responsibilities = torch.softmax(torch.add(level.unsqueeze(2), squares, alpha=-0.5), dim=1)
    return Step(count, shares, means, variances, responsibilities)


def _log_count(count: Tensor, n: int) -> Tensor:
    """Logarithm of weight * N with the floor that the weight has in the density."""
    return (count if WEIGHT_FLOOR * n < COUNT_FLOOR else count.clamp_min(WEIGHT_FLOOR * n)).log()


def _least_count(x: Tensor) -> float:
    return max(COUNT_FLOOR, WEIGHT_FLOOR * x.shape[1])


def _to_samples(x: Tensor, left: list[Tensor], plain: list[Tensor], shifted: list[Tensor]) -> Tensor:
    """Sum of left^T shifted - x * sum of left^T plain over all steps: two products instead of two per step."""
    if not left:
        return torch.zeros_like(x)
    weights = torch.cat(left, dim=1).mT
    scales, moves = torch.bmm(weights, torch.cat(plain, dim=1)), torch.bmm(weights, torch.cat(shifted, dim=1))
    return moves.addcmul_(x, scales, value=-1)


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b
