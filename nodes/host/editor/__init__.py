"""What passes between our nodes and the running host: workflows, inputs, progress, cancel, messages."""
