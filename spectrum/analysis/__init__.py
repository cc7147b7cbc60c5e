"""What a table of results shows. Nothing here knows of training."""
