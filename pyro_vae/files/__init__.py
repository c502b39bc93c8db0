"""File access: atomic writes, folder locks, and safe reading of untrusted files."""
