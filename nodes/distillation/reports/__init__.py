"""Teacher and students judged on prompts of choice: pictures, figures, a report."""
