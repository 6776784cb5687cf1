"""Damaged and hostile input, made by seed, for everything that MetaSER reads; `python tests/fuzz --help`."""
