"""Training as an iterator of epochs: seeding, model, step, loop, self-training rounds."""
