"""The plan before a run beside the run."""
