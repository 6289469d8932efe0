"""Talking to models, comparing them, and looking at runs, in a browser."""
