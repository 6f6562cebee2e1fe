"""Validation loss against training time, a panel for each entrant of a race of many."""

from matplotlib.figure import Figure

from analysis.charts._inputs import Inputs
from analysis.charts._loss_by import loss_by

OF_RACE = True


def draw(inputs: Inputs) -> Figure:
    """Panels from the cheapest entrant in seconds to the dearest."""
    return loss_by(inputs, "seconds")
