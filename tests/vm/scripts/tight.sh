# A restart with 100 MB available: from what an earlier start has compiled, then with the compiler.
PYTHONPATH=/payload python3 tight.py >/results/figures 2>/results/err || wrong "$(tail -1 /results/err)"
cp /tmp/log-* /results
grep -q '^kept|ready.*|killed nobody$' /results/figures || wrong "from what is kept: $(cat /results/figures)"
grep -q '^compiling|' /results/figures || wrong "no start with the compiler was tried"
[ ! -s /results/why ]
