"""Training runs for whoever looks after them: how far each is, its curves and pictures, its name and note. No run needs it."""
