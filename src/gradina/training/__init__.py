"""Training: one loop for recipes from nothing and for fine-tuning."""
