"""The stages of benchmarks/first_contact.py, each in a process of its own."""
