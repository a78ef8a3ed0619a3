"""Text to tokens on disk, tokens to rows in a fixed order, rows back to documents."""
