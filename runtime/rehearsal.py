"""What a race does with an entrant's optimizers, done once before it with all that it needs.

The optimizers are the engine's own, on the model itself, whose weights every run draws anew. So
the rehearsal has what makes optimizers fail in a race: the real shapes, the zero gradients of the
first step, a learning rate that changes, and a validation between two steps. The passes are those
of a few made-up tokens, so it takes little more than the optimizers' own steps.
"""

import sys
import warnings
from collections.abc import Callable

import torch

import engines
from engines import RuleError
from engines._rules import DIVERGED
from errors import UserError
from model import GPT
from runtime.program import Program

STEPS = 4  # at most
TOKENS = 64  # of the one sequence in a step


def rehearse(program: Program, steps: int, factor: Callable[[int], float], label: str) -> None:
    """Raise UserError, naming the entrant, if its optimizers fail. The engine has built them.

    steps, factor: of the schedule. Weights that are not finite afterwards are no failure: such a
    run is recorded as diverged. Optimizers that change nothing may be meant to: a note names them.
    """
    engine, gpt = program.engine, program.gpt
    with engine.weights():
        gpt.init_weights(0)
        before = _sums(gpt)
    generator = torch.Generator().manual_seed(0)
    length = min(TOKENS, program.seq_len)
    chosen = sorted({0, steps // 3, 2 * steps // 3, steps - 1})[:STEPS]
    doing = "to be constructed"
    try:
        for number, step in enumerate(chosen, start=1):
            doing = f"in step {number} of {len(chosen)}"
            tokens = torch.randint(gpt.config.vocab_size, (1, length + 1), generator=generator)
            engine.set_lr(factor(step))
            with program.precision():
                loss = program.wrapped(*program.to_device(tokens[:, :-1], tokens[:, 1:]))
            engine.backward(loss / length, last=True)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=f".*{DIVERGED}")
                engine.step()
            if engine.broke:
                raise engine.broke
            doing = f"in the validation after step {number}"
            with engine.evaluation():
                pass
    except RuleError as error:
        hint = "change its options, such as scope, or write a recipe in optim/"
        raise UserError(
            f"{label}: a rehearsal of the race failed {doing}: {error.what}; {hint}"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not engines.out_of_memory(error):
            raise
        return  # the warm-up finds out what fits
    with engine.weights():
        after = _sums(gpt)
    if after == before and engine.rank == 0:
        print(f"note: {label} changed no hidden matrix in {len(chosen)} steps", file=sys.stderr)


def _sums(gpt: GPT) -> list[tuple[float, float]]:
    """Numbers of each hidden matrix that tell whether it has changed; some rules keep its norm."""
    matrices = [row.param.detach().double() for row in gpt.roles() if row.role == "matrix"]
    return [(p.sum().item(), p.norm().item()) for p in matrices]
