"""Gradients that a trainer of MMSA accumulated and never used are used: a step at the end of each training pass.

mult, misa and self_mm add up gradients over ``update_epochs`` batches before a step. The step for the batches that
are left over at the end of a pass stands behind a counter that was just reset, so it never happens: those batches are
lost, and with fewer batches than ``update_epochs`` nothing is ever trained, without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .compat import View, replace


@contextmanager
def last_window(trainer: Any) -> Iterator[Callable[[], None]]:
    """Yields the function to call at the end of a training pass, which takes the step that is due, if any.

    A step is due for each Adam of the trainer that has cleared its gradients since it last stepped.
    """
    module = sys.modules[type(trainer).__module__]
    due: dict[Any, bool] = {}

    def adam(*args: Any, **kwargs: Any) -> Any:
        optimizer = module_optim.Adam(*args, **kwargs)
        clear = optimizer.zero_grad

        def zero_grad(*args: Any, **kwargs: Any) -> None:
            due[optimizer] = True
            clear(*args, **kwargs)

        optimizer.zero_grad = zero_grad
        optimizer.register_step_post_hook(lambda *args: due.update({optimizer: False}))
        return optimizer

    def end_of_pass() -> None:
        for optimizer in [optimizer for optimizer, is_due in due.items() if is_due]:
            optimizer.step()

    module_optim = getattr(module, "optim", None)
    if module_optim is None:
        yield end_of_pass
        return
    undo = replace(module, "optim", View(module_optim, Adam=adam))
    try:
        yield end_of_pass
    finally:
        undo()
