"""How a model is trained on a cluster: precision, parallelism and batch.

Pipeline stages and expert parallelism leave every matrix whole, so Muon needs nothing for them.
Tensor parallelism cuts matrices and is not planned. Weights are taken to divide evenly over the
stages, experts over the ranks of their stage, and a step's sequences over the replicas.
"""

from dataclasses import dataclass

from errors import UserError
from planner.models import Model, Weight
from runtime import command_line
from runtime.command_line import knob

BYTES = {"bfloat16": 2, "float32": 4}  # of a number


@dataclass(frozen=True)
class Setting:
    """What a plan chooses beside model, optimizer and cluster. Its fields are flags."""

    batch_tokens: int = knob("tokens of a step; 0: the model's own", 0)
    pipeline: int = knob("pipeline stages, each with its share of the layers", 1)
    expert_parallel: int = knob("ranks over which the experts of a stage are divided", 1)
    microbatches: int = knob("passes of a step on each rank", 1)
    bubble: bool = knob(
        "add the pipeline's bubble, stages - 1 microbatches; else --mfu is taken to include it, as "
        "a measured one does", False,
    )  # fmt: skip
    dtype: str = knob("of parameters in the passes: bfloat16 or float32", "bfloat16")
    master: bool = knob("a float32 copy of each parameter that a rank updates", True)
    grad_dtype: str = knob("of gradients, as held and sent", "float32")
    state_dtype: str = knob("of optimizer state", "float32")

    def __post_init__(self) -> None:
        command_line.at_least(self, batch_tokens=0, pipeline=1, expert_parallel=1, microbatches=1)
        for name in ("dtype", "grad_dtype", "state_dtype"):
            value = getattr(self, name)
            if value not in BYTES:
                known = " or ".join(BYTES)
                raise UserError(f"{command_line.flag(name)} {value}: must be {known}")

    @property
    def param_number_bytes(self) -> int:
        """Bytes of a parameter in the passes."""
        return BYTES[self.dtype]

    @property
    def master_number_bytes(self) -> int:
        """Bytes of the copy that is updated; 0: the parameter itself is."""
        return 4 if self.master and self.dtype != "float32" else 0

    @property
    def grad_number_bytes(self) -> int:
        return BYTES[self.grad_dtype]

    @property
    def state_number_bytes(self) -> int:
        return BYTES[self.state_dtype]

    def tokens(self, model: Model) -> int:
        """Tokens of a step."""
        return self.batch_tokens or model.batch_tokens

    def check(self, model: Model, ranks: int) -> None:
        """Raise UserError if the ranks or the model's layers and experts do not divide."""
        cut = self.pipeline * self.expert_parallel
        if ranks % cut:
            raise UserError(
                f"--ranks {ranks}: must be a multiple of --pipeline {self.pipeline} times "
                f"--expert-parallel {self.expert_parallel}; run with --ranks "
                f"{-(-ranks // cut) * cut}"
            )
        if self.pipeline > model.n_layer:
            raise UserError(
                f"--pipeline {self.pipeline}: {model.title} has {model.n_layer} layers; "
                f"run with --pipeline {model.n_layer} at most"
            )
        experts = model.of_roles(("experts",))
        if self.expert_parallel > 1 and not experts:
            raise UserError(
                f"--expert-parallel {self.expert_parallel}: {model.title} has no experts; "
                "leave it out"
            )
        replicas = ranks // self.pipeline
        if self.tokens(model) // model.seq_len < replicas:
            raise UserError(
                f"--ranks {ranks}: {replicas} replicas of the model share "
                f"{self.tokens(model) // model.seq_len} sequences of a step; "
                "run with fewer --ranks, more --pipeline or a larger --batch-tokens"
            )

    def held_share(self, weight: Weight) -> float:
        """The share of a weight's parameters that one rank holds, before data parallelism shards
        it."""
        cut = self.expert_parallel if weight.role == "experts" else 1
        return 1 / (self.pipeline * cut)

    def group_size(self, weight: Weight, ranks: int) -> int:
        """Ranks that hold the same part of a weight, and average its gradient."""
        cut = self.expert_parallel if weight.role == "experts" else 1
        return ranks // (self.pipeline * cut)
