"""What the pages of this folder may say of its studies."""
