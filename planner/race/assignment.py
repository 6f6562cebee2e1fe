"""What each parameter gets: its rule, learning rate, weight decay and optimizer state.

    python -m planner assignment muon --track gpt2

Needs neither data nor a GPU: the model, its table of roles, the recipe and the rules are the real
ones, on tensors without storage. Bytes of state come from the dry run, which counts them
after steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from analysis.table import aligned
from model import GPT
from optim.entrants import Entrant
from planner.race import corpora, dry_run
from speedrun import Track


@dataclass(frozen=True)
class Row:
    """What one parameter gets."""

    name: str
    role: str
    shape: tuple[int, ...]
    blocks: tuple[int, ...]  # rows of the matrices that its rule takes it for
    rule: str
    lr: float  # before the schedule
    weight_decay: float
    numel: int
    state_bytes: int

    def cells(self) -> list[str]:
        heights = [(rows, len(list(same))) for rows, same in groupby(self.blocks)]
        return [
            self.name,
            self.role,
            " x ".join(map(str, self.shape)),
            " + ".join(f"{count} x {rows}" if count > 1 else f"{rows}" for rows, count in heights),
            self.rule,
            f"{self.lr:g}",
            f"{self.weight_decay:g}",
            f"{self.state_bytes:,}",
        ]


HEADINGS = ["parameter", "role", "shape", "blocks", "rule", "lr", "weight decay", "state bytes"]


def rows(gpt: GPT, entrant: Entrant) -> list[Row]:
    """A row for each parameter of a model on the meta device, in the model's order.

    Raises UserError if the entrant's options make no plan, or one of its rules cannot step.
    """
    engine, groups = dry_run.place(gpt, entrant)
    order = {row.name: number for number, row in enumerate(engine.roles())}
    found = []
    for group in groups:
        options = group.options
        costs = dry_run.rule_costs(group, entrant.label)
        for row, cost in zip(group.params, costs, strict=True):
            found.append(
                Row(
                    name=row.name,
                    role=row.role,
                    shape=tuple(row.param.shape),
                    blocks=tuple(options.get("splits") or ()),
                    rule=group.rule.__name__,
                    lr=options["lr"],
                    weight_decay=options.get("weight_decay", 0.0),
                    numel=row.param.numel(),
                    state_bytes=cost.state_bytes,
                )
            )
    return sorted(found, key=lambda row: order[row.name])


def text(table: Sequence[Row]) -> str:
    """The rows, then totals by rule."""
    rules = dict.fromkeys(row.rule for row in table)
    totals = [_total(rule, [row for row in table if row.rule == rule]) for rule in rules]
    totals.append(_total("all", table))
    headings = ["rule", "tensors", "parameters", "state bytes", "bytes a parameter"]
    return "\n\n".join(
        (aligned([HEADINGS, *(row.cells() for row in table)]), aligned([headings, *totals]))
    )


def _total(name: str, table: Sequence[Row]) -> list[str]:
    count, size = sum(row.numel for row in table), sum(row.state_bytes for row in table)
    return [name, f"{len(table)}", f"{count:,}", f"{size:,}", f"{size / count:.2f}"]


def table_of(track: Track, entrant: Entrant) -> str:
    """The assignment of an entrant on a track, as text. Raises UserError."""
    with torch.device("meta"):
        gpt = GPT(track.config(corpora.corpus(track.dataset).vocab_size))
    return text(rows(gpt, entrant))
