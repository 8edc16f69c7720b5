"""Sliding-window attention behind one seam: `Attend` picks a backend, the transformer block sees only its call."""
