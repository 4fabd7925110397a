"""Stochastic gates on rows and columns: what they are, where they go, what they are charged."""
