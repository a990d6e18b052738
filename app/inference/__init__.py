"""A loaded model version (prepare, predict, explain), the model cache, the clinical encoder and attribution."""
