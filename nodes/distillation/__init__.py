"""Distillation nodes: methods, students, data, the trainer, runs and their watching."""
