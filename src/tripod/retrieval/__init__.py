"""Sources -> index -> passages: converters, the SQLite store, synchronisation, and search by words, vectors or both."""
