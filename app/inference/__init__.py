"""A model version as prepare, predict and explain; the model cache and the clinical encoder."""
