"""Numbers and claims for the pages in this folder, computed from the rows of the studies."""
