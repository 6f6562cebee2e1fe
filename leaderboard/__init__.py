"""What makes a number a record: `verify` recomputes it from its files. Never imports torch."""
