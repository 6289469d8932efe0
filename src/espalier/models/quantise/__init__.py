"""Weights in few bits: how they are stored and multiplied, what each method can do, and what it costs."""
