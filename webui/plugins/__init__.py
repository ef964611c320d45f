"""Plugins: read, loaded, asked, and kept from spoiling a picture."""
