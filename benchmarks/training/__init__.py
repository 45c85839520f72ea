"""What a training step costs, beside others."""
