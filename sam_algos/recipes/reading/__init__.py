"""How a recipe is read: found, laid together from its layers, and checked."""
