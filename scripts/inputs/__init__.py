"""Inputs that are bad or awkward, by kind: what `scripts/check_inputs.py` gives to surge."""
