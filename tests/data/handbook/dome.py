"""Control of the dome."""


def close_dome(reason: str) -> None:
    """Close the dome and write the reason into the night log.

    If the motor does not answer within ninety seconds, the siren is switched on and the duty engineer is called.
    """
    raise NotImplementedError(reason)
