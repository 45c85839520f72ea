"""The words in which methods speak: method, stage, target, weighting, distance, loss, grid, guidance range."""
