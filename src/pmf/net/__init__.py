"""Networks: pure functions of tensors."""
