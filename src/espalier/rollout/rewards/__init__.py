"""Rewards: a number for an answer, from rules, from the user's own code, from a judge or from a trained model.

`table` says which kinds there are and reads a user's list of them; `scored` scores the answers of a rollout by it.
"""
