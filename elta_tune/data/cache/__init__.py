"""The cache of decoded images; it knows nothing of ratings, splits or recipes."""
