"""Slow NumPy twins of the native code, written to be read: the oracle of the tests, imported by nothing else."""
