"""Memory of a rank by kind: what the engines hold, buffers, and activations."""
