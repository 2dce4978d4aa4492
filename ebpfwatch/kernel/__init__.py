"""Everything that touches BPF: the ladder of hooks, the loader child, and the fds it hands over.

``bcc`` is imported in ``loader`` only, and only in a child process that exits.
"""
