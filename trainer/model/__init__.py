"""The model: encoder, heads, losses, and what they cost."""
