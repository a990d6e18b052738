"""Metrics, curves and subgroups of predicted probabilities. Uses no torch and no database."""
