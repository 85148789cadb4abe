"""The OpenAPI document: additions to what FastAPI finds in the code, and final changes."""
