"""The commands: what they take, and what is called once that is known to be good."""
