"""One graph from noise to bytes, as a file for other programs: ONNX, and torch's own .pt2."""
