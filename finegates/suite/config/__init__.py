"""Configuration of a tier, validated when it is read."""
