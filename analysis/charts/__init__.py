"""Charts of a race from the CSVs alone: chart X is file X. Never imports torch.

    python -m analysis.charts               # your newest race, into plots/
    python -m analysis.charts --figures     # the committed charts of every record

A chart is a file `X.py` of this folder with two names: `draw(inputs)`, which returns the figure,
and `OF_RACE`, which is False where the chart shows tuning trials or many races. `_make` finds the
files, so a new chart is one new file. Files whose name begins with "_" are shared code.
"""
