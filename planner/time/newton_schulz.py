"""FLOPs and memory traffic of orthogonalisation: Newton-Schulz on a hidden matrix, in its forms.

A matrix has m <= n as its smaller and larger side. A step of the published form is three products:
X X^T (2 n m^2 FLOPs), its square (2 m^3), and the result times X (2 n m^2). The Gram form iterates
on X X^T, so that two products alone see n; `muon.py` has both. A test counts the FLOPs of muon.py.
"""

import difflib
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from errors import UserError
from planner.models import Weight
from runtime.command_line import knob

# Steps of each table of muon.COEFFICIENTS, as it is meant to be used.
STEPS = {
    "jordan": 5, "stable": 12, "polar-express": 5, "polar-express-1.01": 8, "you": 5, "cans": 5,
    "cubic5": 5, "deepseek-v4": 10,
}  # fmt: skip
FORMS = ("plain", "gram", "cheaper")
MOST_STEPS = 99  # as muon.py has it


class Product(NamedTuple):
    """Equal matrix products (rows, inner) x (inner, cols) in one orthogonalisation."""

    times: int
    rows: int
    inner: int
    cols: int
    half: bool  # a kernel computes half of the result, which is symmetric
    moved_numbers: int  # by one of them: each operand and the result, once

    @property
    def volume(self) -> int:
        """Multiplications of one of them, were all of the result computed."""
        return self.rows * self.inner * self.cols

    @property
    def flops(self) -> float:
        """Of one of them."""
        return (1.0 if self.half else 2.0) * self.volume


@dataclass(frozen=True)
class Iteration:
    """How Muon orthogonalises. Its fields are flags of the command line."""

    ns_coefficients: str = knob(f"one of {', '.join(STEPS)}", "jordan")
    ns_steps: int = knob("steps of Newton-Schulz; 0: as many as the table is meant for", 0)
    ns_form: str = knob("plain, gram, or cheaper: of the two, the one with fewer FLOPs", "plain")
    symmetric: bool = knob("kernels that compute half of each symmetric product", False)
    split: bool = knob("each head is a matrix of its own (Muon Split)", False)

    def __post_init__(self) -> None:
        for flag, value, known, safe in (
            ("--ns-coefficients", self.ns_coefficients, tuple(STEPS), "jordan"),
            ("--ns-form", self.ns_form, FORMS, "plain"),
        ):
            if value not in known:
                near = difflib.get_close_matches(value, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"run with {flag} {safe}"
                raise UserError(f"{flag} {value}: must be one of {', '.join(known)}; {hint}")
        if not 0 <= self.ns_steps <= MOST_STEPS:
            must = f"must be from 0 to {MOST_STEPS}"
            raise UserError(f"--ns-steps {self.ns_steps}: {must}; leave it out for the table's own")

    @property
    def steps(self) -> int:
        """Steps, with the table's own number in place of 0."""
        return self.ns_steps or STEPS[self.ns_coefficients]

    def blocks(self, weight: Weight) -> tuple[tuple[int, int, int], ...]:
        """(m, n, how many) of the matrices in one parameter of a weight, m <= n.

        They are its heads with `split`; else query, key and value, if the weight has them fused.
        """
        rows, cols, splits = weight.rows, weight.cols, weight.splits or (weight.rows,)
        if self.split and weight.parts > 1:
            splits = (rows // weight.parts,) * weight.parts
        return tuple(
            (min(height, cols), max(height, cols), count)
            for height, count in Counter(splits).items()
        )

    def matrices(self, weight: Weight) -> tuple[int, int, int]:
        """(m, n, how many) of the matrices in one parameter; of mean height where they differ."""
        parts = sum(count for _, _, count in self.blocks(weight))
        rows = weight.rows // parts
        return min(rows, weight.cols), max(rows, weight.cols), parts

    def form(self, m: int, n: int) -> str:
        """plain or gram. "cheaper" is muon.py's choice on a CPU where both are accurate."""
        if self.ns_form != "cheaper":
            return self.ns_form
        plain, gram = (_flops(self._of_form(form, m, n)) for form in FORMS[:2])
        return "gram" if gram < plain else "plain"

    def products(self, m: int, n: int) -> tuple[Product, ...]:
        """All products for one matrix of sides m <= n."""
        return self._of_form(self.form(m, n), m, n)

    def _of_form(self, form: str, m: int, n: int) -> tuple[Product, ...]:
        steps, half = self.steps, self.symmetric
        times = steps if form == "plain" else 1
        to_gram = Product(times, m, n, m, half, m * n + m**2)  # X X^T
        from_gram = Product(times, m, m, n, False, m**2 + 2 * m * n)  # B X or Z X
        square = Product(steps, m, m, m, half, 2 * m**2)  # c A A + b A
        if form == "plain":
            return to_gram, square, from_gram
        # A step multiplies into Z, and but for the last step into R twice. The first Z is the
        # identity. All of these are polynomials in R, so they are symmetric.
        inner = Product(3 * (steps - 1), m, m, m, half, 3 * m**2)
        return to_gram, square, inner, from_gram

    def flops(self, m: int, n: int) -> float:
        """FLOPs for one matrix of sides m <= n."""
        return _flops(self.products(m, n))

    def moved_numbers(self, m: int, n: int) -> int:
        """Numbers that the products for one matrix read and write."""
        return sum(each.times * each.moved_numbers for each in self.products(m, n))

    def launches(self, m: int, n: int) -> int:
        """Products for one batch of matrices."""
        return sum(each.times for each in self.products(m, n))

    def weight_flops(self, weight: Weight) -> float:
        """FLOPs for all parameters of a hidden weight."""
        return weight.count * sum(count * self.flops(m, n) for m, n, count in self.blocks(weight))


def _flops(products: tuple[Product, ...]) -> float:
    return sum(each.times * each.flops for each in products)


def bound(steps: int, m: float, tokens: float) -> float:
    """The most that orthogonalisation can be of the FLOPs of a layer that sees so many tokens.

    T m / B (Jordan et al. 2024): m is the smaller side. It counts 6 n m^2 for a step, which
    is 4 n m^2 + 2 m^3 with m = n at most; the layer takes 6 n m FLOPs for a token.
    """
    return steps * m / tokens
