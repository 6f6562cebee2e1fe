"""A training step, simulated: what is hidden, who waits, and the price of an optimizer."""
