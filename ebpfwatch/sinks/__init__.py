"""Telling people: findings to the journal and to files, numbers to Prometheus, a page to a
browser.
"""

from __future__ import annotations
