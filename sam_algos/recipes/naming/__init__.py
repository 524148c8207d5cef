"""What a recipe may name: what each name takes, and the object that it stands for."""
