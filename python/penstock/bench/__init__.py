"""Benchmarks: penstock and its peers on the same work in the same run.

``penstock bench`` runs them; ``docs/benchmarks.md`` describes suites, files and formulas.
"""
