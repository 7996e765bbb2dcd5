"""Layers and their parameters."""
