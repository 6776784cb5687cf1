"""How a person or a scheduler starts things."""
