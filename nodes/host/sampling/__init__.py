"""What the host's models and prompts are to samplers and to training, and how hosts differ there."""
