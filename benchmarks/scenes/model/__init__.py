"""The drawn world, and who draws it: scenes by number, their network, the teacher, its solvers."""
