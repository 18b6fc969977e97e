"""Sphinx's settings."""

import execwatch

project = "execwatch"
author = "the execwatch developers"
project_copyright = "the execwatch developers"
version = release = execwatch.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
