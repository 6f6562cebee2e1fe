"""Charts of the planner: one file per chart, each with a function `draw`."""
