# $1: hours. `make soak` in the guest; its table is what is kept.
umount /state
python3 -m tests.trust.soak --hours $1 --round 15 --files 2000 --storm /payload/storm >/results/soak 2>&1 ||
    wrong "$(tail -3 /results/soak)"
grep '^|' /results/soak >/results/books
[ ! -s /results/why ]
