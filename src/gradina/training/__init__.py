"""Learning: one loop, and recipes that say what it learns from."""
