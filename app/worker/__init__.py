"""The worker process: the pipeline of one prediction, its queue, and the supervision of workers."""
