"""Configuration of a tier: what is run, checked when it is read."""
