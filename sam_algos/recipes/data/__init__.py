"""The data that a recipe names, and the networks that are built for it."""
