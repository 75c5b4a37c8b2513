"""A model as a file."""
