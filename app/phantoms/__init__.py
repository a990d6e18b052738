"""Synthetic patients with a known ground truth, as volumes, cohorts and arrays."""
