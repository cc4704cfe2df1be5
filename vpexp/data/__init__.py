"""Annotated images: reading, prompts, samples."""
