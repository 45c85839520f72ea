"""Sampling nodes: samplers, schedules, recipes, model patches, guidance, comparison."""
