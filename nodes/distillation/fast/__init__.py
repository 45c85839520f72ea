"""Make It Fast: what it chooses for a model, a goal and a card, and the run that comes of it."""
