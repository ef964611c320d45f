"""The comparison grid: what may vary, which cells that makes, what is measured, and what leaves the house."""
