"""Data sets from a name, a folder, a table or arrays: reading, labels, splits, augmentation, teachers."""
