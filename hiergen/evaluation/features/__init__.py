"""Features that distances are measured on, the statistics of references, and what is computed from both."""
