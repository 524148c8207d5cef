from tests.recipes.writing import listed, write

__all__ = ["listed", "write"]
