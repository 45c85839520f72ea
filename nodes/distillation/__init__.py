"""Runs: Distill Model and the process elsewhere, the plan before, what is told meanwhile, and their watching."""
