"""A MODEL with its CLIP and VAE as the teacher of a run: its network, what it carries, what it is known by, what it draws."""
