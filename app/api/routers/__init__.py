"""The HTTP routes, one module per resource. A route resolves its inputs, calls one function, and answers."""
