"""Projects of users: packages whose parts, data sets and options the commands find."""

from pyro_vae.projects.create import create_project

__all__ = ["create_project"]
