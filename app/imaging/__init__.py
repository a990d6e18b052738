"""Computations on volumes as plain arrays and affines: preprocessing, vessels, plausibility, resampling."""
