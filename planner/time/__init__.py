"""Seconds and FLOPs of orthogonalisation, and how whole matrices are dealt to owners."""
