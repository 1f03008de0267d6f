"""FP8 calibration: measure the largest inputs of every linear layer and make scales from them."""
