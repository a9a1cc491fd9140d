"""Checks that any method or dataset has to pass, for the project's own tests and for others'."""
