"""Rollouts: prompts in, sampled trees with everything that a loss of reinforcement learning reads, out."""
