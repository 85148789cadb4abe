"""The OpenAPI document: what the code cannot say by itself, and the document's last changes."""
