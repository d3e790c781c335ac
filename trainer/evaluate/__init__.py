"""What a student learnt, measured on a store's labelled splits."""
