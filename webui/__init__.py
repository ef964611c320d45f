"""A browser studio for Stable Diffusion: make, compare and explain pictures."""

__version__ = "0.1.0"
