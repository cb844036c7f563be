"""Slurm: what a site is, the tiny task that a job runs, and the submission of stages as dependent jobs."""
