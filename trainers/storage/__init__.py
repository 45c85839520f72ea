"""Files that are whole or not there, the run folder, and the exported student."""
