"""Benchmarks, beside the peers that are installed, in one run."""
