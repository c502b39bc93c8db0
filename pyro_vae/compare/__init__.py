"""Comparison of runs: differing settings, means over seeds, paired differences, uncertainty.

Nothing here needs PyTorch.
"""
