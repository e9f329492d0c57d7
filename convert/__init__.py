"""Core ML export: the model's program, its package, and the proof that both are one model. See docs/export.md."""
