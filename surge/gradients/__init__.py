"""Gradient statistics as pure functions of (loss_fn, params, batch)."""
