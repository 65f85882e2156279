"""What a person sees in a terminal: text made printable, tables, and safe standard streams."""
