"""Wire formats, described once for the client and the server."""
