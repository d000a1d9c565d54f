"""The recipe of the embedded model: its data, tokenizer, training and evaluation."""
