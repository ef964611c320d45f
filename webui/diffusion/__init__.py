"""The only rooms that know torch and diffusers. Nothing here is imported before the server answers."""
