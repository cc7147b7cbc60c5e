"""What is asked: options of a network, the run's record, recipes, the study file. Importing it loads no torch."""
