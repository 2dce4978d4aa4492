"""The daemon's end of the loaded programs: file descriptors, maps, ring, kernel symbols.

Nothing here uses bcc; ``loader`` does, in a child process that exits.
"""
