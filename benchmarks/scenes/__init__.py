"""The drawn world: scenes with exact captions, the teacher that draws them, its judges, solvers and students."""
