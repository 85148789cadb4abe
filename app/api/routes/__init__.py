"""The endpoints: each takes a checked request, calls the core and writes the answer."""
