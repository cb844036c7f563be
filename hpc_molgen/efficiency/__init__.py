"""Costs, break-even and the benchmark suites."""
