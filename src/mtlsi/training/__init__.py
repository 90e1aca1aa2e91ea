"""Training: ``loop`` takes the steps, ``setup`` builds what they need, ``log`` and ``callbacks`` report on them."""
