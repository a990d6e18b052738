"""Affine registration of head CT to MNI152 space, with its skull strip, template and brain mask."""
