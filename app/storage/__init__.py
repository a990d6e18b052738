"""Content-addressed blobs: in a local folder, or in S3 with a local cache."""
