"""Settings of the site: ``make docs`` builds it from these pages, docstrings and results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "extensions")]

import finegates  # noqa: E402  found from here on

# autodoc imports modules with TYPE_CHECKING on, and pydantic's models would then get other fields.
import finegates.suite.runs.llama_record  # noqa: E402

project = "finegates"
author = "The finegates maintainers"
copyright = f"{author}, Apache-2.0"
version = release = finegates.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "repository_pages",
    "published_results",
    "module_pages",
]
exclude_patterns = ["_build", "extensions", "pictures"]

html_theme = "furo"
html_title = f"finegates {release}"
html_static_path = ["static"]
html_css_files = ["tables.css"]
html_theme_options = {"navigation_with_keys": True}

highlight_language = "text"  # a fence without a language holds commands or what they print
default_role = "code"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",  # a table is a "###" wherever it is shown
    "ref.python",  # a public name is described under its module, too
]

autodoc_default_options = {"members": True, "ignore-module-all": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
# As a list of fields: described once, not as objects of their own.
napoleon_custom_sections = [("Attributes", "params_style")]


def setup(app: Any) -> None:
    """Nothing here; each extension connects its own hooks."""
