"""The replica farm: molecular dynamics from every written structure."""
