"""One module a corpus: how it lies on disk, turned into utterances."""
