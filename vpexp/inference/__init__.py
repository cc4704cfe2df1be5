"""Predictors: an image and prompts in, masks out."""
