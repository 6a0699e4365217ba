"""The input: rows of image-questions from files and hubs, and their images, decoded in processes of their own."""
