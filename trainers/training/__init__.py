"""Training: the loop, the stages of a run, one distillation from start to file, its trial and plan."""
