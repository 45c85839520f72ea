"""Weights wherever the host keeps them, as autograd may see them."""
