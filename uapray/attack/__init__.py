"""The mathematics of the search: pure functions on tensors, which know neither files nor machines."""
