"""FLOPs of matrix decompositions, which torch's counter does not know, by the textbook's formulas.

Golub & Van Loan, Matrix Computations, 4th edition: algorithms 8.3.3 (symmetric QR algorithm), 5.2.1
(Householder QR, and as much again for the columns of Q) and 3.1.2 (back substitution).
"""

from collections.abc import Sequence
from math import prod


def eigh(shape: Sequence[int]) -> float:
    """All eigenvalues and eigenvectors of symmetric matrices (..., n, n): 9 n^3 each."""
    *batch, n, _ = shape
    return prod(batch) * 9 * n**3


def qr(shape: Sequence[int]) -> float:
    """R and the explicit, reduced Q of matrices (..., m, n).

    For m >= n, 2 m n^2 - 2/3 n^3 for each of the two. A wider matrix ends with m reflections.
    """
    *batch, m, n = shape
    k = min(m, n)
    return prod(batch) * (2 * (m + max(m, n)) * k**2 - 4 / 3 * k**3)


def solve_triangular(shape: Sequence[int], n: int) -> float:
    """Solutions, of that shape, of n triangular equations each: n^2 for a vector of them."""
    return prod(shape) * n
