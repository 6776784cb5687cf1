"""Encoders behind one interface: audio (or its text) in, the frames of all layers out."""
