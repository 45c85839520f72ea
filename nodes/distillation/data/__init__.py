"""Training data nodes, what they describe until a run reads it, and the prompts of previews."""
