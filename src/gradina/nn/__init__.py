"""Layers without domain knowledge."""
