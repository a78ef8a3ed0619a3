"""Question and passages to a prompt, to an answer whose citations are checked."""
