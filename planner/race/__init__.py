"""What a race of a track here takes, counted on the real model and the real rules."""
