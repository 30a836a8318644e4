"""Exact optimal matching of persistence diagrams."""
