"""The NNI back end."""
