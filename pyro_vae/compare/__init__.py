"""The comparison of runs: which settings differ, what they give, and how sure that is.

Nothing here needs PyTorch.
"""
