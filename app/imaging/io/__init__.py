"""NIfTI reading and writing, with strict checks of header, affine, gzip stream and grid."""
