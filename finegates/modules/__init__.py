"""The layers of a model, dense, gated and narrowed, and how they multiply."""
