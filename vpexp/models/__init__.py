"""The Segment Anything models, in plain torch: architecture, weights, registry."""
