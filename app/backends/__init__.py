"""The runtimes: one folder each, which carries out what `core/backend.py` asks for."""
