"""Clusters: GPUs, links of two levels, and how often they are late or fail.

    python -m planner verdict deepseek-v4 --cluster h800 --ranks 2048 --mfu 0.35

clusters.toml names some; every number of a cluster is a flag, and a file of your own has the same
form. What a data sheet does not say is an assumption, and its help text says so.
"""

import argparse
import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from errors import UserError
from host import paths
from planner.cluster.hardware import GPU, GPUS
from planner.time import efficiency
from planner.time.efficiency import CURVE_HELP, LAUNCH_HELP, Curve
from runtime import command_line
from runtime.command_line import knob

NAMED = Path(__file__).parents[1] / "clusters.toml"
DEFAULT = "h100"
WORDS = ("gpu", "curve")  # fields that are no numbers


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal GPUs in equal nodes. Its fields are flags of the command line."""

    gpu: str = knob(f"one of {', '.join(GPUS)}")
    ranks: int = knob("GPUs, one process on each", 1024)
    ranks_per_node: int = knob("GPUs of a node")
    node_bytes_per_s: float = knob("link of a GPU in its node, bytes/s one way, by data sheet")
    net_bytes_per_s: float = knob("link of a GPU to other nodes, bytes/s one way, by data sheet")
    node_latency_s: float = knob("time of a message in a node, s; assumed", 3e-6)
    net_latency_s: float = knob("time of a message between nodes, s; assumed", 1e-5)
    mfu: float = knob("share of the peak that passes get, stragglers included; assumed", 0.4)
    curve: str = knob(CURVE_HELP, efficiency.AUTO)
    launch_us: float = knob(LAUNCH_HELP, 0.0)
    straggler_sd: float = knob("standard deviation of the log of a rank's time; assumed", 0.02)
    gpu_hours_per_failure: float = knob(
        "GPU hours between failures; 50,700 by Llama 3 (2407.21783, section 3.3.4: 419 in 54 days "
        "on 16,384 GPUs)", 50_700.0,
    )  # fmt: skip
    restart_minutes: float = knob("minutes that a failure costs with the work lost; assumed", 20.0)
    price_per_gpu_hour: float = knob("dollars for one GPU and hour; 0: unknown")

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            known = ", ".join(GPUS)
            raise UserError(f"--gpu {self.gpu}: must be one of {known}; run with --gpu h100")
        command_line.at_least(self, ranks=1, ranks_per_node=1)
        efficiency.chosen(self.gpu, self.curve, self.launch_us)  # raises UserError
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not 0 <= value < math.inf:
                flag = command_line.flag(each.name)
                raise UserError(f"{flag} {value}: must be 0 or more and finite; or leave it out")
        for name in ("node_bytes_per_s", "net_bytes_per_s", "mfu", "gpu_hours_per_failure"):
            if not getattr(self, name):
                raise UserError(f"{command_line.flag(name)} 0: must be above 0; or leave it out")
        if not 0.001 <= self.mfu <= 1:
            raise UserError(f"--mfu {self.mfu}: must be 0.001 to 1; try --mfu 0.4")
        if self.straggler_sd > 1:
            raise UserError(f"--straggler-sd {self.straggler_sd}: must be at most 1; leave it out")
        if self.ranks > self.ranks_per_node and self.ranks % self.ranks_per_node:
            nodes = math.ceil(self.ranks / self.ranks_per_node)
            raise UserError(
                f"--ranks {self.ranks}: must fill nodes of {self.ranks_per_node}; "
                f"run with --ranks {nodes * self.ranks_per_node}"
            )

    @property
    def kind(self) -> GPU:
        return GPUS[self.gpu]

    @property
    def efficiency(self) -> Curve:
        """The curve of its GPUs, with the launches of the plan."""
        return efficiency.chosen(self.gpu, self.curve, self.launch_us)

    @property
    def flops(self) -> float:
        """FLOP/s of one GPU in forward and backward passes."""
        return self.mfu * self.kind.peak_flops


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The clusters of a file. Raises UserError if it cannot be read or has another form."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # also a file that is no TOML or no UTF-8
        raise UserError(f"--cluster {path}: cannot be read: {error}; mend the file") from error
    known = {each.name: each.type for each in fields(Cluster)}
    for name, table in found.items():
        if not isinstance(table, dict):
            raise UserError(f"{path}: {name} must stand in a table, such as [h100]; mend the file")
        for key, value in table.items():
            if key not in known:
                must = f"must be one of {', '.join(known)}"
                raise UserError(f"{path}: [{name}] {key}: {must}; mend the file")
            if isinstance(value, str) != (key in WORDS) or isinstance(value, bool | list | dict):
                raise UserError(f"{path}: [{name}] {key}={value!r}: must be a number; mend it")
    return found


def add(parser: argparse.ArgumentParser, default: str | None = DEFAULT) -> None:
    """The flags --cluster and those of its numbers. default: None: the plan's own."""
    names = ", ".join(read(NAMED))
    usual = default or f"the model's own in planner/scale.toml, else {DEFAULT}"
    note = f"one of {names}, or a file like planner/clusters.toml (default: {usual})"
    parser.add_argument("--cluster", default=default, metavar="NAME", help=note)
    command_line.add(parser, Cluster, "the cluster", default="the cluster's own")


def chosen(arguments: argparse.Namespace) -> Cluster:
    """The cluster of a command line. Raises UserError."""
    given = command_line.given(arguments, Cluster)
    return make(arguments.cluster, **given)


def make(name: str, **changes: Any) -> Cluster:
    """A named cluster, or the first of a file, with changes to its fields. Raises UserError."""
    named = read(NAMED)
    if name in named:
        values = named[name]
    elif name.endswith(".toml"):
        path = paths.typed(name)
        values = next(iter(read(path).values()), {})
    else:
        known = ", ".join(named)
        raise UserError(
            f"--cluster {name}: must be one of {known}, or a file that ends in .toml; "
            "run with --cluster h100"
        )
    values = values | changes
    needed = ("gpu", "ranks_per_node", "node_bytes_per_s", "net_bytes_per_s", "price_per_gpu_hour")
    missing = [each for each in needed if each not in values]
    if missing:
        raise UserError(f"--cluster {name}: {missing[0]} is missing; add it to the file")
    whole = {"ranks", "ranks_per_node"}
    typed: dict[str, Any] = {
        key: value if key in WORDS else int(value) if key in whole else float(value)
        for key, value in values.items()
    }
    return Cluster(**typed)
