"""What became of a student: distances and accuracy, charts, the demo's judge."""
