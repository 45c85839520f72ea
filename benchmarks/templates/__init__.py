"""The host's own few-step templates, drawn by our samplers beside theirs."""
