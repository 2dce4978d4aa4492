"""What there is to watch and to say, one row each: data that other packages ask.

Nothing here imports anything of ebpfwatch.
"""
