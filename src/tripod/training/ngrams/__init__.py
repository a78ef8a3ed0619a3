"""Where and when a run reads a sequence of tokens."""
