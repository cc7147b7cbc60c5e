"""Records of what is asked for: network options, a run, recipes, the study file. Importing it does not load torch."""
