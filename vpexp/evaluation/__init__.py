"""Metrics, and the one evaluation loop."""
