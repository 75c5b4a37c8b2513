"""A search space: its parameters, the space itself, and its check against a recipe."""
