"""Counting the references that one module takes and gives back: where its code calls, and what the
counts say.  Pure; `ebpfwatch balance` is the command.
"""
