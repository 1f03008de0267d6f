"""How good a served model is: two servers, such as BF16 and FP8, compared token by token."""
