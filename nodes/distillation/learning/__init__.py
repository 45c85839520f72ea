"""Nodes of methods and of students: what learns, by which method, and the files that come of it."""
