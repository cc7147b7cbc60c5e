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
    "repository",  # what stands elsewhere in the repository as pages: results, notebooks
    "drawings",  # figures that are drawn at build
    "reference",  # Python names in the site's index
]
exclude_patterns = ["_build", "_ext", "_figures"]
nitpicky = False

# Markdown and notebooks
myst_enable_extensions = ["colon_fence", "html_image", "attrs_inline"]
myst_heading_anchors = 4
myst_html_meta = {
    "description": "One PyTorch layer from a regular to a depthwise separable convolution, "
    "and the studies that show what each step costs and gains."
}
nb_execution_mode = "off"  # notebooks are committed with their outputs; `make notebooks` executes them
nb_ipywidgets_js = {}
suppress_warnings = ["myst.header"]  # a page may begin below the top level, as a changelog's headings do

# Pages
html_theme = "pydata_sphinx_theme"
html_title = "spectrum"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_show_sourcelink = True  # "Show Source" beside each page
html_sourcelink_suffix = ""
html_show_copyright = False
html_sidebars = {page: [] for page in ("index", "tutorial", "changelog")}  # these have no pages below them
html_theme_options = {
    "logo": {"text": "spectrum", "image_light": "_static/favicon.svg", "image_dark": "_static/favicon.svg"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc", "sourcelink"],
    "footer_start": [],
    "footer_end": [],
}
