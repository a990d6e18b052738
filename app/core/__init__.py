"""Settings, logging, tracing, concurrency, file system and outbound HTTP for every package."""
