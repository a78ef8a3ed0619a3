"""A trace where people look: a file, a page, OpenTelemetry."""
