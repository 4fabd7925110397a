"""Stochastic gates on rows and columns: values, placement and penalties."""
