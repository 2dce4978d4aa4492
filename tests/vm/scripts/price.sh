# What each rung costs, in instructions.
PYTHONPATH=/payload python3 price.py >/results/figures 2>/results/err || wrong "$(tail -1 /results/err)"
[ ! -s /results/why ]
