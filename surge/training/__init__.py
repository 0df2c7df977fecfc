"""Whole training runs as pure functions, and the grids of them."""
