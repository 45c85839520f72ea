"""Training data: batches, their cache on disk, a folder of pictures."""
