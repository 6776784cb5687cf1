"""The model, its two fine-tuning stages, the engine, evaluation and export."""
