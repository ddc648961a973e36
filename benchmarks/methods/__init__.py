"""What methods cost and save: loss against rounds and bytes, and whether papers' orderings hold."""
