"""Images, from a name, a folder, a table or arrays: read, labelled, split, augmented, relabelled by a teacher."""
