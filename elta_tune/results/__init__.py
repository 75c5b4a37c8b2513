"""What a study found: the ranking, and checkpoints that are measured again before they are handed over."""
