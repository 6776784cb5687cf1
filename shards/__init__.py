"""Corpora stored as WebDataset shards, and shards turned into batches."""
