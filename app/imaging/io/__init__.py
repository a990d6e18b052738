"""NIfTI in and out: strict header, affine, gzip and grid checks."""
