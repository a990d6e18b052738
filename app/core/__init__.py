"""What every package may use: settings, logging, tracing, concurrency, file system and outbound HTTP."""
