"""The stages, a module each: a recipe, columns and one `compute`; `rows` says what goes into them."""
