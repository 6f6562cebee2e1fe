"""The base of the update rules in this folder: what torch asks of an optimizer, beside its update.

    class Descent(Rule):
        def __init__(self, params, lr=0.01):
            super().__init__(params, dict(lr=lr))

        def update(self, params, group):
            for p in params:
                p.sub_(p.grad, alpha=float(group["lr"]))

`Muon` has the same methods of its own, since muon.py must stand alone.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from muon import RANGES, check_numbers, check_params, set_state, with_gradients

Changed = list[tuple[list[Tensor], dict[str, Any]]]  # groups, with their parameters to change


class Rule(torch.optim.Optimizer):
    """An optimizer whose subclass has an `update` and, where it needs them, the three switches.

    The constructor and `add_param_group` raise ValueError for what the rule cannot take. lr may be
    a tensor of one element, so an update reads it as a float. State that is saved before an option
    exists loads with that option as it is here.
    """

    ranges: ClassVar[dict[str, tuple[float, float]]] = {}  # of numbers that `muon.RANGES` lacks
    matrices = False  # the rule takes 2-D parameters alone; `splits` are the rows stacked in each
    elementwise = False  # it treats each entry by itself; see engines/_rules.py
    half = True  # it takes float16, in which the square of a small gradient is 0

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        check_numbers(defaults, RANGES | self.ranges)
        super().__init__(params, defaults)

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Change the parameters of a group that have a gradient; autograd is off."""
        raise NotImplementedError

    def update_all(self, changed: Changed) -> None:
        """Change the parameters of all groups; for a rule that batches over groups."""
        for params, group in changed:
            self.update(params, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the result of `closure`."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        name = type(self).__name__
        changed = [(with_gradients(group, name), group) for group in self.param_groups]
        self.update_all([(params, group) for params, group in changed if params])
        return loss

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for options or parameters that the rule cannot take."""
        check_numbers(group, RANGES | self.ranges)
        check_params(group, type(self).__name__, self.half, self.matrices)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
        except BaseException:
            del self.param_groups[-1]  # a group that is refused is not there
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        set_state(self, state)
