"""The ways: one folder per runtime, each a translation of `core/backend.py`."""
