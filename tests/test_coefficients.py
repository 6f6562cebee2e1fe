"""The Newton-Schulz coefficients, digit for digit.

    python -m pytest tests/test_coefficients.py

The tables are typed from Jordan et al. 2024, Amsel et al. 2505.16932, Grishina et al. 2506.10935,
modded-nanogpt and Emerging-Optimizers, not taken from muon.py. A digit that is off moves where
singular values land by less than test_muon.py sees. What Polar Express divides X by, beside its
norm, is divided out of the first step here as the paper has it: (a / s, b / s^3, c / s^5).
"""

import pytest

from muon import COEFFICIENTS, Coefficients
from tests.matrices import FIVE, JORDAN, STABLE

CANS = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)
CUBIC = (
    (3.3656576, -3.3420992, 0),
    (2.5744352, -1.4957376, 0),
    (2.5368962, -1.4312570, 0),
    (2.4418906, -1.2764040, 0),
    (2.2230472, -0.9630650, 0),
)
# Of modded-nanogpt, nanochat and dion, for X over 1.02 times its norm.
CUSHIONED = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Of the paper, before its safety of 1% in all steps but the last, and for X over 1.01 times its
# norm.
RAW = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
LAST = (1.875, -1.25, 0.375)


def scaled(step: tuple[float, float, float], s: float) -> tuple[float, float, float]:
    """The step that does to X what `step` does to X / s."""
    a, b, c = step
    return a / s, b / s**3, c / s**5


TYPED: dict[str, Coefficients] = {
    "jordan": JORDAN,
    "stable": STABLE,
    "you": FIVE,
    "cans": CANS,
    "cubic5": CUBIC,
    "deepseek-v4": (*JORDAN * 8, *STABLE * 2),
}


def test_every_table_is_compared_here() -> None:
    assert COEFFICIENTS.keys() == {*TYPED, "polar-express", "polar-express-1.01"}


@pytest.mark.parametrize("name", TYPED)
def test_a_table_has_its_published_digits(name: str) -> None:
    assert COEFFICIENTS[name] == TYPED[name]


def test_the_five_steps_of_polar_express_divide_the_norm_by_their_safety_in_the_first() -> None:
    first, *rest = COEFFICIENTS["polar-express"]
    assert first == pytest.approx(scaled(CUSHIONED[0], 1.02), rel=1e-12, abs=0)
    assert tuple(rest) == CUSHIONED[1:]


def test_the_eight_steps_of_the_paper_have_its_safety_in_all_but_the_last() -> None:
    first, *rest, last = COEFFICIENTS["polar-express-1.01"]
    assert first == pytest.approx(scaled(scaled(RAW[0], 1.01), 1.01), rel=1e-12, abs=0)
    assert len(rest) == 6 and last == LAST
    for found, raw in zip(rest, RAW[1:], strict=True):
        assert found == pytest.approx(scaled(raw, 1.01), rel=1e-12, abs=0)
