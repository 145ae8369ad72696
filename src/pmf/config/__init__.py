"""The whole run's options: sections, checks across them, YAML in and out. Needs no torch."""
