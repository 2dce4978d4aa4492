"""What the daemon asks of the operating system: locks, threads, privileges, files that survive."""
