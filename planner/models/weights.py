"""A model as a list of weights: shapes, counts, and the share of a step's tokens that each sees.

Here are the classes; models.py finds a model by its name. No tensor is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# What a weight is for. Muon takes the first four, which are hidden matrices.
ROLES = ("attention", "mlp", "experts", "router", "embed", "head", "vector")
HIDDEN = ROLES[:4]


@dataclass(frozen=True)
class Weight:
    """Equal parameters of a model: `count` tensors of (rows, cols) numbers."""

    name: str  # such as "attention.q_up"
    role: str  # one of ROLES; "experts" are routed, a shared expert is an "mlp"
    rows: int  # out
    cols: int = 1  # in
    count: int = 1  # in the whole model: layers, times experts
    parts: int = 1  # matrices of equal height stacked in each, such as heads: see Muon Split
    # Of a step's tokens, the share that one of them sees: experts see few. A token reads one row of
    # an embedding, so its share is one row's.
    token_share: float = 1.0
    source: str = ""  # where the numbers are from
    splits: tuple[int, ...] = ()  # rows of query, key and value, if one tensor has them; else none
    low: bool = False  # bfloat16 with its gradient and state, where others are float32

    @property
    def size(self) -> int:
        """Numbers of one of them."""
        return self.rows * self.cols

    @property
    def params(self) -> int:
        """Numbers of all of them."""
        return self.size * self.count

    @property
    def hidden(self) -> bool:
        """Whether Muon may take it."""
        return self.role in HIDDEN


@dataclass(frozen=True)
class Model:
    """What decides a model's memory, FLOPs and traffic."""

    name: str
    title: str
    weights: tuple[Weight, ...]
    n_layer: int
    n_embd: int
    seq_len: int  # tokens of a training sequence
    n_head: int
    qk_size: int  # numbers of a query of one head
    v_size: int  # numbers of a value of one head
    attended: float  # keys that a query sees, on average over a training sequence
    batch_tokens: int  # of a step in its published training; assumed if `assumed` says so
    train_tokens: float  # of its published training; 0: unknown
    published_params: float = 0.0  # 0: none published
    published_active_params: float = 0.0
    source: str = ""
    streams: int = 1  # copies of the residual stream: hyper-connections have several
    assumed: tuple[str, ...] = ()  # a sentence for each number that no source gives

    @property
    def params(self) -> int:
        """All parameters."""
        return sum(weight.params for weight in self.weights)

    @property
    def active_params(self) -> float:
        """Parameters that one token meets."""
        return sum(weight.params * weight.token_share for weight in self.weights)

    @property
    def hidden_params(self) -> int:
        """Parameters in hidden matrices."""
        return sum(weight.params for weight in self.weights if weight.hidden)

    @property
    def flops_per_token(self) -> float:
        """Of forward and backward: 6 per weight of a matrix product that the token meets (Kaplan et
        al. 2001.08361), and attention's two products with the keys that it sees."""
        products = sum(
            weight.params * weight.token_share
            for weight in self.weights
            if weight.role not in ("embed", "vector")
        )
        attention = self.n_layer * self.n_head * (self.qk_size + self.v_size) * self.attended
        return 6.0 * products + 6.0 * attention

    def of_roles(self, roles: Sequence[str]) -> tuple[Weight, ...]:
        """The weights with one of these roles."""
        return tuple(weight for weight in self.weights if weight.role in roles)
