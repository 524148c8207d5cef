"""Gradients and losses at points near the weights, as the parts of a method see them."""
