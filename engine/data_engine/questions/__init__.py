"""The input: rows of image-questions from files and hubs, their images, decoded and ahead of their turn."""
