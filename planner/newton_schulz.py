"""FLOPs of orthogonalisation: Newton-Schulz on each hidden matrix, in its forms.

A matrix has m <= n as its smaller and larger side. A step of the published form is three products:
X X^T (2 n m^2 FLOPs), its square (2 m^3), and the result times X (2 n m^2).
"""

from dataclasses import dataclass

from planner.models import Weight
from runtime.command_line import knob

# Steps of each table of muon.COEFFICIENTS, as it is meant to be used.
STEPS = {
    "jordan": 5, "stable": 12, "polar-express": 5, "polar-express-1.01": 8, "you": 5, "cans": 5,
    "cubic5": 5, "deepseek-v4": 10,
}  # fmt: skip
FORMS = ("plain", "gram", "cheaper")


@dataclass(frozen=True)
class Iteration:
    """How Muon orthogonalises. Its fields are flags of the command line."""

    ns_coefficients: str = knob(f"one of {', '.join(STEPS)}", "jordan")
    ns_steps: int = knob("steps of Newton-Schulz; 0: as many as the table is meant for", 0)
    ns_form: str = knob(f"{', '.join(FORMS)} of the two, by FLOPs", "plain")
    symmetric: bool = knob("kernels that compute half of each symmetric product", False)
    split: bool = knob("each head is a matrix of its own (Muon Split)", False)

    @property
    def steps(self) -> int:
        """Steps, with the table's own number in place of 0."""
        return self.ns_steps or STEPS[self.ns_coefficients]

    def matrices(self, weight: Weight) -> tuple[int, int, int]:
        """(m, n, how many) of the equal matrices in one parameter of a weight, m <= n."""
        parts = weight.parts if self.split else 1
        rows = weight.rows // parts
        return min(rows, weight.cols), max(rows, weight.cols), parts

    def flops(self, m: int, n: int) -> float:
        """FLOPs for one matrix of sides m <= n."""
        wide, square = 2.0 * n * m**2, 2.0 * m**3  # products that see n; those of m x m
        half = 0.5 if self.symmetric else 1.0
        steps = self.steps
        plain = steps * (half * wide + half * square + wide)
        # The Gram matrix and the end see n. A step squares R and multiplies into Z, and but for the
        # last one into R twice; the first Z is the identity. All of these are symmetric.
        gram = half * wide + wide + half * square * (steps + (steps - 1) + 2 * (steps - 1))
        return {"plain": plain, "gram": gram, "cheaper": min(plain, gram)}[self.ns_form]

    def weight_flops(self, weight: Weight) -> float:
        """FLOPs for all parameters of a hidden weight."""
        m, n, parts = self.matrices(weight)
        return weight.count * parts * self.flops(m, n)
