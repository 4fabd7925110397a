"""Layers of compact models, and shared helpers for dense and gated ones."""
