from tests.recipes.writing import write

__all__ = ["write"]
