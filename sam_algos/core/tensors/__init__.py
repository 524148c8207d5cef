"""Tensors, one for each parameter: lists of them, vectors, shards, gradients, and weights that move and come back."""
