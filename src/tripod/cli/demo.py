"""`tripod demo`."""


def demo() -> None:
    """Show what Tripod does, on the documentation of the Python that runs it."""
    raise NotImplementedError
