"""What things cost: one question per script, us and the peers in turn in the same run."""
