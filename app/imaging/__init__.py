"""Computations on volumes as plain arrays and affines: input and output, registration, perfusion, vessels."""
