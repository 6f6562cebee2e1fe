"""A synthetic study of the engines, as studies.engines writes it."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from analysis.engines import ENGINES
from tests.rows import SOURCE, make_points, make_run, make_turns, on_the_clock
from tracking.schema import Planned, Run, Validation
from tracking.store import append, record

P, W = 4_000_000, 3_000_000  # bytes of parameters, and of those that Muon has
STATE = {"adamw": 8_000_000, "muon": 5_000_000}


class Costs(NamedTuple):
    """Bytes of the process that has most."""

    params: float
    grads: float
    state: float
    sent: float  # in a step


def costs_of(engine: str, recipe: str) -> Costs:
    """On two processes, but for `single`."""
    state, whole = STATE[recipe], W * (recipe == "muon")
    return {
        "single": Costs(P, P, state, 0),
        "ddp": Costs(P, P, state, P),
        "sharded": Costs(P, P, state / 2, P),
        "fsdp2": Costs((P + whole) / 2, P / 2, state / 2, P + W / 2 + whole / 2),
    }[engine]


SLOWER = {"single": 1.0, "ddp": 1.0, "sharded": 1.1, "fsdp2": 1.5}  # seconds of a step, over ddp's
GAP = 2e-6  # of the losses of engines that are not `single`


def points_of(engine: str) -> list[Validation]:
    off = 0.0 if engine == "single" else GAP
    points = make_points(step_seconds=0.1 * SLOWER[engine])
    return [replace(point, val_loss=point.val_loss + off) for point in points]


def run_of(engine: str, recipe: str, costs: Costs, points: list[Validation]) -> Run:
    alone = engine == "single"
    return make_run(
        points, engine=engine, world_size=1 if alone else 2, label=recipe, entrant=recipe,
        race=f"engines-{engine}", run=f"engines-{engine}-{recipe}", heat="" if alone else engine,
        turn_steps=0 if alone else 2, param_bytes=round(costs.params),
        grad_bytes=round(costs.grads), state_bytes=round(costs.state),
        communication_bytes=round(100 * costs.sent),
        optimizer_seconds=0.5, forward_backward_seconds=9 * SLOWER[engine],
        mfu=2e10 * 100 / (10 * SLOWER[engine]) / 4e11 / (1 if alone else 2),
    )  # fmt: skip


def write_engines(root: Path, wrong: float = 1.0) -> None:
    """AdamW and Muon on the engines of SLOWER. wrong: times the memory that formulas say."""
    plans: list[Planned] = []
    for engine in SLOWER:
        for recipe in STATE:
            costs = costs_of(engine, recipe)
            points = points_of(engine)
            run = run_of(engine, recipe, costs, points)
            turns = on_the_clock(make_turns(run), points) if run.heat else []
            held = replace(run, state_bytes=round(run.state_bytes * wrong))
            record(root / ENGINES, held, points, SOURCE, (), turns)
            bytes_of = (run.param_bytes, run.grad_bytes, run.state_bytes, run.communication_bytes)
            plans.append(Planned(run.run, *bytes_of))
    for plan in plans:
        append(root / ENGINES / "planned.csv", plan)
