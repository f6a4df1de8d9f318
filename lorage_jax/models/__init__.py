"""One decoder for all families, with its cache; nothing here knows of files or training."""
