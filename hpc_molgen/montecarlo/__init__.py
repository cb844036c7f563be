"""Exact corrections of a surrogate that is not good enough for plain weights: sequential Monte Carlo, and exact chains."""
