"""Experiments in print, repeated: reported accuracies against those obtained here."""
