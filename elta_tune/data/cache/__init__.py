"""The cache of decoded images; it does not depend on ratings, splits or recipes."""
