"""Measurements against peers, from the root of a checkout: `python -m bench.dense`."""
