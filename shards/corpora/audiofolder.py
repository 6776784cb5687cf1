"""Hugging Face's AudioFolder: the same as `folder`, under the name by which people look for it."""

from __future__ import annotations

from shards.corpora.base import own_reader
from shards.corpora.folder import read_folder

READER = own_reader("audiofolder", "Audio in a folder with metadata.csv, .jsonl or .parquet", read_folder)
