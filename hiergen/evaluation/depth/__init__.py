"""The study of plans: recursion, ladders, chains and exits of a small generator at the same budget."""
