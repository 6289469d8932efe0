"""Old checkpoints that the tests make themselves, for machines without the recorded ones."""
