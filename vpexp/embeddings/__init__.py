"""The cache of image embeddings: what is stored, what is missing, how it is filled and read."""
