"""Tools of the maintainers, not part of the package."""
