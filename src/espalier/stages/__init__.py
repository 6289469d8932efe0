"""The training stages: one small objective each, and what they are built from."""
