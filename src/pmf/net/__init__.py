"""Networks: architectures, the table of their sizes, and derivatives carried beside values."""
