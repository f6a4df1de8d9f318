"""Methods trained alike and asked alike: the parts of a comparison, its figures, its table."""
