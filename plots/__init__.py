"""Charts of a race, from the CSVs alone. Never imports torch."""
