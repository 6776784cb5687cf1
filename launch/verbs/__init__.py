"""One verb of the metaser command a file."""
