"""Files to documents: one room a format, each giving exact offsets."""
