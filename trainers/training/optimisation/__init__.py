"""What one update does: a learner with its optimiser, rate, average and micro-batches, its figures, and what a user chooses."""
