"""Gradina: Stable Diffusion, whole, in Python."""
