"""Metrics that compare pixel with pixel: classes, depth, values, directions, saliency.

All take decoded predictions, ``update(prediction, label, valid)`` with ``valid`` (b H W) bool, and hold nothing but
int64 or float64 sums, so batches and processes may be cut in any way and still add up to the same score.
``compute()`` gives named scalars; shares are in percent, and a score that no pixel speaks for is NaN. A prediction that is
not finite at a valid pixel raises ``MistakeError``.
"""
