"""What the alignment losses cost, without a clock: operations, nodes, saved bytes, solver rounds, peak memory.

The limits are what was counted when they were written, with a little room for another torch release. Time in these
operators is the number of operations, since each is tiny: a change that trips a limit makes training slower. Raise one
only for a reason, and measure with benchmarks/operators.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmsa_decalign import ops

N, D, K = 32, 64, 7


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher, by name; views are left out, which do no work."""

    VIEWS = ("view", "unsqueeze", "squeeze", "transpose", "slice", "select", "split", "detach", "expand", "unbind",
             "alias", "as_strided", "diagonal", "permute", "t")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name not in self.VIEWS and not name.startswith("split"):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def nodes(value: Tensor) -> int:
    """Nodes of the graph that leads to a value."""
    seen, ahead = set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead.extend(previous for previous, _ in node.next_functions)
    return len(seen)


def batch(n: int = N, m: int = 3) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(n, D, generator=rng).requires_grad_() for _ in range(m)]


def hetero(x: list[Tensor], k: int = K) -> Any:
    return ops.hetero_loss(x, n_components=k)


def homo(x: list[Tensor]) -> Any:
    return ops.homo_loss(x)


def cost(loss: Any, x: list[Tensor]) -> dict[str, int]:
    """Everything countable of one forward and backward pass."""
    loss(x)  # what is made once and kept
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), Operations() as forward:
        value = loss(x).value
    with Operations() as backward:
        value.backward()
    forward, backward = (sum(found.counts.values()) for found in (forward, backward))
    return {"forward": forward, "backward": backward, "nodes": nodes(value), "saved": sum(saved.values())}


@pytest.mark.parametrize(
    ("loss", "limits"),
    [
        (hetero, {"forward": 480, "backward": 175, "nodes": 22, "saved": 330_000}),
        (homo, {"forward": 67, "backward": 7, "nodes": 12, "saved": 100_000}),
    ],
    ids=["hetero", "homo"],
)
def test_operations_nodes_and_saved_bytes(loss, limits):
    found = cost(loss, batch())
    assert {name: found[name] for name in limits if found[name] > limits[name]} == {}


def test_a_round_of_the_solver_is_some_twenty_operations():
    """What a forward pass costs grows with the rounds: a problem that is solved in 3 against one that takes more."""
    hard, easy = batch(), [(0.1 * x.detach()).requires_grad_() for x in batch()]
    rounds = [hetero(x).result.n_iter for x in (hard, easy)]
    counts = [cost(hetero, x)["forward"] for x in (hard, easy)]
    assert rounds[1] <= 3 < rounds[0] <= 12
    assert counts[0] - counts[1] <= 21 * (rounds[0] - rounds[1])


def test_rounds_of_the_solver_over_some_batches():
    rounds = []
    for seed in range(12):
        rng = torch.Generator().manual_seed(seed)
        x = [torch.randn(N, D, generator=rng) for _ in range(3)]
        rounds.append(hetero(x).result.n_iter)
        assert hetero([0.3 * t for t in x]).result.n_iter <= 4
    assert sorted(rounds)[6] <= 8
    assert max(rounds) <= 20


def test_what_is_saved_grows_with_the_samples_and_not_with_samples_times_components_times_dimensions():
    few, many = (cost(hetero, batch(n))["saved"] for n in (64, 256))
    assert many - few <= 192 * 3 * (13 * K + 3 * D + 10) * 8


def test_homogeneity_saves_its_own_derivative_and_no_kernel():
    few, many = (cost(homo, batch(n))["saved"] for n in (64, 256))
    assert many - few <= 192 * 3 * 2 * D * 8


def test_the_number_of_operations_does_not_grow_with_modalities_but_for_the_solver():
    two, five = (cost(homo, batch(m=m)) for m in (2, 5))
    assert five["forward"] == two["forward"]
    assert five["backward"] == two["backward"]
    fits = [ops.hetero_loss(batch(m=m), n_components=2, reg=1e3) for m in (2, 5)]
    assert fits[0].result.n_iter == fits[1].result.n_iter
    backward = [cost(lambda x: ops.hetero_loss(x, n_components=2, reg=1e3), batch(m=m))["backward"] for m in (2, 5)]
    assert backward[0] == backward[1]


LARGE = """
import sys
import torch
from mmsa_decalign import ops
torch.set_num_threads(1)
rng = torch.Generator().manual_seed(0)
x = [torch.randn(256, 64, generator=rng).requires_grad_() for _ in range(3)]
loss = ops.hetero_loss(x, n_components=256)
loss.value.backward()
assert loss.result.converged
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_256_prototypes_of_256_samples_fit_in_a_gigabyte_and_a_half():
    """In all, with what torch itself takes: its K^3 plan is 128 MiB, and the release stores hundreds of those.

    The peak of this process's own memory, since ru_maxrss of a child starts at that of the process which started it.
    """
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1024 < 1.5e9
