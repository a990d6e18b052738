"""Figures and the self-contained HTML report of one prediction, and the figures of monitoring."""
