"""The host's files: where they lie, whole checkpoints, and what LoRA files call layers."""
