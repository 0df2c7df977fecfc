"""Figures and the page, drawn from stored results only."""
