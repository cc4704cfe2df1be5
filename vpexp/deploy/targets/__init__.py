"""Exported models in the form of other tools: their ports, and the configuration or the handler that each of them wants."""
