"""Feature files: their schema, safe reading, and the synthetic data that is there by default."""
