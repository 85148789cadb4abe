"""The hands: the one program with privileges. It confines, and trusts neither the gateway nor what it confines.

Standard library only, and little of it: every sandbox is a copy of this process, so each import costs every sandbox
page tables and faults (measured: json + socket + subprocess add 0.28 ms to each clone). No `re`, `enum`, `typing`,
`dataclasses`, `json`, `socket`, `logging` here. Start reading at `confine.py`.
"""
