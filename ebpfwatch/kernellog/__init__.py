"""The kernel's own words: recognised while they come (watcher) and after the crash (triage)."""
