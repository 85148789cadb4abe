"""The launcher: the only program that keeps root and takes requests. It confines, and trusts neither the gateway nor
what it confines.

It imports the standard library only, and little of it. Every sandbox is a clone of this process, so each import costs
every sandbox page tables and faults (measured: json + socket + subprocess add 0.28 ms to each clone). No `re`, `enum`,
`typing`, `dataclasses`, `json`, `socket`, `logging` here. Start reading at `sandbox/confine.py`.
"""
