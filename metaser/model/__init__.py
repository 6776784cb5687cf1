"""Encoder, Augmented Residual Integration, co-attention, heads."""
