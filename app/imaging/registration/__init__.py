"""Affine registration of head CT to MNI152 space, and the skull strip it needs."""
