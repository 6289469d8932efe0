"""The training stages, one small objective each, and the wiring that runs them."""
