"""Start from weights that are there: `weights.py` copies them into a new run's model, `lora.py` trains adapters beside them."""
