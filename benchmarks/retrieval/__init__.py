"""How good and how fast retrieval is, next to the peers."""
