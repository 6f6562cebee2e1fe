"""Charts of a plan, one file per chart."""
