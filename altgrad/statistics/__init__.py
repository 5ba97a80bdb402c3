"""What may be said of paired differences: intervals, the best set, decisions, and the pairs they take.

One place for what the report, `altgrad compare` and `sweep --power` need. On numpy and scipy, without torch.
"""
