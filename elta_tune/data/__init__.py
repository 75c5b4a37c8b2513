"""From rating files to batches: readers, cache (uint8, decoded once), overlap of splits, batches, demo data."""
