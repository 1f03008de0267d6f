"""How good a served model is: beside the model card, beside another engine, under attack."""
