"""Distillation in pure torch: methods, the student, the loop and the run folder. Never imports ComfyUI."""
