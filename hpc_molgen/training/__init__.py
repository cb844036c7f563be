"""Training: one loop for every surrogate, on one process or many."""
