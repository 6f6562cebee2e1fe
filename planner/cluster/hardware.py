"""GPUs that a run can be planned for, and what is assumed of a machine full of them.

python -m planner race adamw muon --track gpt2 --gpu h200 --gpus 4 --price-per-hour 3.5
"""

from dataclasses import dataclass
from typing import NamedTuple

from errors import UserError
from runtime.command_line import knob


class GPU(NamedTuple):
    """One accelerator, by its maker's data sheet."""

    name: str
    peak_flops: float  # FLOP/s, bfloat16 with float32 accumulation, dense
    memory_bytes: int
    memory_bytes_per_s: float


# NVIDIA's data sheets of the SXM modules (B200: of the HGX board). What they print "with sparsity"
# is halved. An H800 is an H100 with slower links.
GPUS = {
    "a100": GPU("A100 80GB", 312e12, 80 * 10**9, 2.039e12),
    "h100": GPU("H100", 989e12, 80 * 10**9, 3.35e12),
    "h800": GPU("H800", 989e12, 80 * 10**9, 3.35e12),
    "h200": GPU("H200", 989e12, 141 * 10**9, 4.8e12),
    "b200": GPU("B200", 2250e12, 180 * 10**9, 7.7e12),
}


@dataclass(frozen=True)
class Machine:
    """The machine of a plan. Its fields are flags of the command line."""

    gpu: str = knob(f"one of {', '.join(GPUS)}", "h100")
    gpus: int = knob("number of GPUs, one process on each", 8)
    mfu: float = knob("assumed share of the peak that the model's FLOPs get", 0.5)
    price_per_hour: float = knob("price of one GPU for an hour, any currency; 0: unknown", 0.0)

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise UserError(
                f"--gpu {self.gpu}: must be one of {', '.join(GPUS)}; run with --gpu h100"
            )
        if self.gpus < 1:
            raise UserError(f"--gpus {self.gpus}: must be at least 1; run with --gpus 8")
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu {self.mfu}: must be above 0 and at most 1; try --mfu 0.5")
        if not 0 <= self.price_per_hour < float("inf"):
            raise UserError(
                f"--price-per-hour {self.price_per_hour}: must be 0 or more; leave it out to plan "
                "without a price"
            )

    @property
    def kind(self) -> GPU:
        return GPUS[self.gpu]

    @property
    def flops(self) -> float:
        """FLOP/s that one GPU is assumed to deliver."""
        return self.mfu * self.kind.peak_flops
