"""Records -> fewer and cleaner records, each step with an account of what it took out and why."""
