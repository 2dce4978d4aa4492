"""In a guest: whether the daemon's counters add up; prints them, and what is WRONG with them.

The first argument is how many inodes must have died for the answer to be worth something, further
ones are the verdicts that are right here.
"""

import re
import sys

text = open("/results/metrics").read()


def get(kind, name):
    found = re.search(rf'ebpfwatch_{kind}_total{{\w+="{name}"}} (\S+)', text)
    return int(float(found.group(1)))


def event(name):
    return get("lifecycle_events", name)


def lost(name):
    return get("lost_events", name)


print(
    f"evicted {event('evict')} in_reclaim {event('evict_in_reclaim')} freed {event('free')}"
    f" missed {lost('free_missed')} forgotten {lost('forgotten_dying')} torn {lost('torn')}"
    f" unlinked {event('unlink')} dentries {event('dentry')} put {event('put')}"
    f" closed {event('close')}"
)
for kind in ("submit", "decode", "queue", "reclaim_context"):
    if lost(kind):
        print("WRONG: lost", kind, lost(kind))
explained = event("free") + lost("free_missed") + lost("forgotten_dying") + lost("torn")
# What died within the last moment is not freed yet.
if not 0 <= event("evict") - explained <= 64:
    print("WRONG: evictions unexplained:", event("evict") - explained)
if event("evict") < int(sys.argv[1]) or not event("evict_in_reclaim"):
    print("WRONG: not much of a churn")
legal = ("concurrent_unlink", "freed_in_reclaim", *sys.argv[2:])
for verdict, count in re.findall(r'findings_total{[^}]*test="false",verdict="(\w+)"} (\S+)', text):
    if float(count) and verdict not in legal:
        print("WRONG: a finding:", verdict, count)
