"""Networks: attention, the trunk, the causal head."""
