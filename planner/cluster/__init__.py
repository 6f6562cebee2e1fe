"""GPUs, links and failures of a cluster, and how a model is trained on it."""
