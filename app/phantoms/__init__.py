"""Synthetic patients with a known truth, as volumes, cohorts and arrays."""
