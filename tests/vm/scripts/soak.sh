# $1: hours. `make soak` in the guest; its table is what is kept. It prints its daemon's log, which the judge looks for.
umount /state
python3 -m tests.trust.soak --hours $1 --round 15 --files 2000 --storm /payload/storm >/results/err 2>&1 ||
    wrong "$(tail -3 /results/err)"
grep '^|' /results/err >/results/figures
[ ! -s /results/why ]
