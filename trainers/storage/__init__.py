"""Files that are whole or not there, the run folder, the exported student, and looking at runs."""
