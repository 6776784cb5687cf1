"""Sizes of the smallest encoders that transformers builds."""

from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
BUCKETS = {"num_buckets": 8, "max_bucket_distance": 16}
"""Of WavLM's position biases; other encoders have none."""
