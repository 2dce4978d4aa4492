"""The log of a living kernel: the messages that are known, reports with a stack, the watcher.

``ebpfwatch.triage`` reads the logs of dead machines with the same table and the same parser.
"""
