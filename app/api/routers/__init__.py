"""The HTTP routes, one module per resource. A route resolves, acts and answers."""
