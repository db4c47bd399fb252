"""What diagrams are made of: layout, colours, legends and safe text."""
