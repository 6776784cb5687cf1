"""The experiment as one typed tree."""
