"""What moves the weights: Muon and Adam, the learning rate, and averages of the weights."""
