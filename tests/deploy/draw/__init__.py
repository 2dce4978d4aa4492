"""Draws the dashboard as Grafana would, from a real Prometheus; see dashboard.tsx."""
