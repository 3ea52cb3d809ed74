"""What the entry points do: which job a configuration asks for."""
