"""From nothing to a model, by a recipe."""
