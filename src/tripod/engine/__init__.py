"""Weights read to answer: the pure policy, its execution, and the step loop between them."""
