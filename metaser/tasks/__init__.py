"""Kinds of tasks: each is one module from metadata to table cell, found through one line of `metaser.tasks.kinds`."""
