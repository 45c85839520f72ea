"""Training: the loop, its options and optimisers, the stages of a run, one distillation from start to file."""
