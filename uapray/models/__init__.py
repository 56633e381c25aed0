"""Classifiers: built by name, trained, saved without pickles, checked, and made fast for input gradients."""
