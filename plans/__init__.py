"""Experiment planner and presets, importable as ``nnunet_topomae.plans``."""
