"""Metrics, curves and subgroups of predicted probabilities; without torch and database."""
