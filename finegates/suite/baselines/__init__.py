"""Baselines: independent pruning, 2:4 masks, unstructured sparsity."""
