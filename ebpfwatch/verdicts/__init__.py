"""Judging: the life of an inode object, what may go wrong with it, and how sure we are.

Pure: no clock, no file, no BPF.
"""
