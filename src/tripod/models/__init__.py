"""One file an architecture, and how checkpoints come in and go out."""
