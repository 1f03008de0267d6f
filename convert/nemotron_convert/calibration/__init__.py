"""FP8 calibration: find the largest inputs of every linear layer and derive the scales from them."""
