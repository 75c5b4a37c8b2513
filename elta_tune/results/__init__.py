"""What a study found: its ranking, its best trial, and checkpoints that are measured again before they are handed over."""
