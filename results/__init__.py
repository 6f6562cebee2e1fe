"""Records of runs: their schema, storage, statistics and verification. Never imports torch."""
