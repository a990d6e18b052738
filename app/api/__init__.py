"""The HTTP edge: request parsing, authentication, limits, responses and the OpenAPI document. Loads no torch."""
