"""The policy for any system: its network, estimators of a binary decision's gradient, training."""
