"""What is trained on: rows of a feature store, batches of them, and what is drawn of each."""
