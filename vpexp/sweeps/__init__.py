"""Sweeps: many jobs of one configuration, compared, kept apart, and resumed."""
