"""Descriptions of unknown architectures, found by search and certified by replay."""
