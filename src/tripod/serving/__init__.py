"""HTTP on the engine."""
