"""Anything that answers messages, and the wire formats it speaks."""
