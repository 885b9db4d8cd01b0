"""Verbs about this machine and not about models: what is installed, and what the shell completes."""
