"""What ``scripts/benchmark.py`` measures: one file a work, ours and the plain implementation side by side.

Legend of shapes: B images, N prompts, C channels, H W original size or rows and columns, S model input size.
"""
