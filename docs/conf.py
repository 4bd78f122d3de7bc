"""Configuration of Sphinx."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

project = "Flask-ScopedSession"
copyright = "2026 Flask-ScopedSession contributors"
version = release = installed_version("Flask-ScopedSession")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = True

# The inventories of other projects are kept here, so the build needs no network. To
# renew one, download "objects.inv" from its address, such as
# https://docs.sqlalchemy.org/en/21/objects.inv. These are those of SQLAlchemy 2.1.9,
# Flask 3.1.3, Werkzeug 3.1.9 and Python 3.11.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.inv"),
    "flask": ("https://flask.palletsprojects.com/en/stable/", "inventories/flask.inv"),
    "werkzeug": (
        "https://werkzeug.palletsprojects.com/en/stable/",
        "inventories/werkzeug.inv",
    ),
    "sqlalchemy": (
        "https://docs.sqlalchemy.org/en/21/",
        "inventories/sqlalchemy.inv",
    ),
}
# Signatures have short names, private ones such as those of type variables, and the
# modules that define SQLAlchemy's classes, where its documentation has public ones.
nitpick_ignore_regex = [
    (r"py:.*", r"(t\.)?\w+|.*\._.*"),
    (r"py:class", r"sqlalchemy\.(sql|engine\.url|orm\.(session|relationships))\..*"),
]

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
html_search_scorer = str(Path(__file__).with_name("search_scores.js"))
html_title = f"Flask-ScopedSession {version}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False


def hide_arguments(_app: object, what: str, *_: object) -> tuple[str, None] | None:
    """Errors are raised by the package, so nobody needs their arguments."""
    return ("", None) if what == "exception" else None


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", hide_arguments)
