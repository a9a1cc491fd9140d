"""Regression checks: fresh or stored runs against stored values."""
