"""Losses, advantages and metrics: pure functions of tensors and floats, without configs, models or ranks."""
