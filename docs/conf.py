"""The documentation site: `make docs` builds it into docs/_build/html, and fetches nothing from the network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from spectrum import __version__

project = "spectrum"
author = "the spectrum authors"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "repository",  # what stands elsewhere in the repository as pages: results, notebooks
    "drawings",  # figures and numbers that are made at build
    "records",  # tables of a record's fields
    "costs",  # what the networks cost
    "commands",  # the command's own help
]
exclude_patterns = ["_build", "_ext", "_figures"]
default_role = "py:obj"  # `name` in docstrings: a link where the name is documented, else code
nitpicky = False

# Markdown and notebooks
myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs; `make notebooks` executes them
nb_ipywidgets_js = {}
suppress_warnings = ["myst.header"]  # a page may begin below the top level, as a changelog's headings do

# Docstrings
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# Pages
html_theme = "pydata_sphinx_theme"
html_title = "spectrum"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_sidebars = {page: [] for page in ("index", "tutorial", "changelog")}  # these have no pages below them
html_theme_options = {
    "logo": {"text": "spectrum"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}
