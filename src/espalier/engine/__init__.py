"""The engine: one loop over accelerate, its optimiser, checkpoints and numbers. It knows no algorithm."""
