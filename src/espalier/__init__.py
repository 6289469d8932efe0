"""Espalier: train, examine and serve language models on token trees."""

__version__ = "0.1.0"
