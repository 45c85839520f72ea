"""Figures as they stand on pages, over noises and trainings."""
