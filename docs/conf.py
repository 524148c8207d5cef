"""How the site is built: ``sphinx-build -W -b html docs docs/_build``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

import sam_algos  # noqa: E402

project = "sam_algos"
version = release = sam_algos.__version__
copyright = "the sam_algos developers, Apache-2.0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "cards",  # docs/_ext: a page for each method, part and contract, from its docstring
    "links",  # docs/_ext: links that hold on the site and on GitHub
]
exclude_patterns = ["_build", "_ext"]

# A name in single backticks is a link, and has to lead somewhere.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(torch|composer|typing|collections)\..*|\.?Event\.\w+"), ("py:(class|exc)", ".*")]

toc_object_entries = False
autodoc_typehints = "none"  # the docstrings have the types, and in words the ranges
autodoc_mock_imports = [] if find_spec("composer") else ["composer"]
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_heading_anchors = 3  # as GitHub makes them
myst_enable_extensions = ["deflist"]

html_theme = "furo"
html_title = f"sam_algos {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_use_index = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "friendly"
pygments_dark_style = "monokai"
