"""Charts of a race from the CSVs alone: chart X is file X. Never imports torch.

python -m analysis.charts
"""
