"""Shares of a prediction: Shapley values, voxel attribution and anatomical regions."""
