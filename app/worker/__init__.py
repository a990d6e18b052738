"""The worker process: the pipeline of one prediction, the queue, and supervision between workers."""
