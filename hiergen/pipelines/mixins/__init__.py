"""What a pipeline can do beside generating, one ability per file."""
