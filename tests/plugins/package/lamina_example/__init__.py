"""A package that adds a method, a loss, an optimizer, a data format and a scorer to lamina."""
