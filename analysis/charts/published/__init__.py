"""Charts of what others published, from results/published alone: chart X is file X.

    python -m analysis.charts --figures      # draws them into plots/published/

A chart is a file with `draw(data)`, which returns the figure. `analysis.charts._make` finds them.
"""
