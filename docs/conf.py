"""Configuration of Sphinx."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "Flask-ScopedSession"
copyright = "2026 Flask-ScopedSession contributors"
version = release = installed_version("Flask-ScopedSession")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = True
# References to other projects are not resolved, so the build needs no network.
# Neither are private names, such as those of type variables.
nitpick_ignore_regex = [(r"py:.*", r"(?!flask_scopedsession\.[a-zA-Z]).*|.*\._.*")]

# Two packages have a Pagination. Within each, the name means its own.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["own.css"]
html_title = f"Flask-ScopedSession {version}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
