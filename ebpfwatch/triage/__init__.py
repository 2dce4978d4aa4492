"""Reads the log of a machine that crashed: is it this bug, why, and what to do next.

It needs only the standard library, and nothing but its command imports it.
"""
