"""Stages, engine, checkpoints."""
