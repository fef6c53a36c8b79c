"""Continued training that makes the FFNs of a model sparse: `hotset sparsify`. Needs the extra hotset[train].

settings, schedule, pull, tokens and mixture need NumPy only; the other modules import PyTorch.
"""
