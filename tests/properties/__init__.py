"""Promises that hold for any input: generated requests to the running service, generated values for its parts."""
